"""Pairs of texts, such as sentences and their translations, in an order that is the same on every run.

A path names two parallel files, a table, JSON lines, a prepared TensorFlow Dataset, or a task that a program generates.
"""

from __future__ import annotations

import itertools
import json
import pathlib
import re
from collections.abc import Iterator, Sequence

from transformer.data import datasets, tasks
from transformer.data.config import TASK, TFDS, Data
from transformer.data.sources import Pair
from transformer.data.split import held_out, point

_FORMS = (
    "'SOURCE,TARGET' (two parallel text files), a .tsv or .jsonl file, 'tfds:NAME[/CONFIG][:VERSION][@SPLIT]' or "
    "'task:NAME[:SHORTEST-LONGEST]'"
)


def pairs(config: Data, path: str | None = None) -> Iterator[Pair]:
    r"""The pairs that a path names, in order; empty texts are handed on as they are.

    Files are UTF-8, and a byte order mark that opens one is no part of its text. A line ends with "\n" or "\r\n" and
    nothing else, so that a text may hold any other separator of lines that Unicode has.

    `SOURCE,TARGET`: line n of one file belongs to line n of the other.

    `.tsv`: columns between tabs, without the quoting of CSV: a quotation mark is a character like any other, and a text
    holds no tab and no line end. `config.pairs.source` and `.target` are two numbers of columns, counted from 1, of a
    table without a header, or two names in its first line; None takes columns 1 and 2 without a header.

    `.jsonl`: one object a line; `config.pairs.source` and `.target` are its keys, "source" and "target" for None.

    `tfds:NAME[/CONFIG][:VERSION][@SPLIT]`: a dataset prepared as array_record; nothing is downloaded.
    `config.pairs.source` and `.target` are features, for None what the dataset itself calls input and output. Without
    `@SPLIT` it is `config.tfds.split`.

    `task:NAME[:SHORTEST-LONGEST]`: `config.pairs.count` pairs of `tasks.generate`. The same task with the same range
    is the same pairs every time, so that held-out ones of a task need another range, or are a share of these.

    Args:
      config: what to read, and how.
      path: read this instead of `config.path`, with the same settings: held-out pairs.

    Raises:
      ValueError: if the path names no pairs, a file is missing or damaged, or a column, a feature or a split is absent.
    """
    where = f"data.path={config.path!r}" if path is None else f"held-out pairs {path!r}"
    path = config.path if path is None else path
    if path.startswith(TFDS):
        return _tfds(path.removeprefix(TFDS), config, where)
    if path.startswith(TASK):
        return _task(path.removeprefix(TASK), config.pairs.count, where)
    table = pathlib.Path(path).expanduser()
    read = {".tsv": _table, ".jsonl": _objects}.get(table.suffix.lower())
    if read is not None and (table.is_file() or "," not in path):
        return read(_existing(table, where), config)
    if path.count(",") == 1 and all(name.strip() for name in path.split(",")):
        return _parallel(*(_existing(pathlib.Path(name.strip()).expanduser(), where) for name in path.split(",")))
    alone = ". It is one text file, and pairs need two: 'SOURCE,TARGET'" if table.is_file() else ""
    raise ValueError(f"{where} names no pairs: give {_FORMS}{alone}")


def divide_pairs(found: Sequence[Pair], config: Data) -> tuple[list[Pair], list[Pair]]:
    """The training and the validation pairs, each in the order of `found`.

    A hash of the source alone decides, so that pairs with equal sources fall on the same side, whatever their targets:
    about `config.validation` of the sources are held out, and which ones hardly depends on the other pairs.

    Raises:
      ValueError: if fewer than two sources differ.
    """
    points = [point(pair.source) for pair in found]
    if len(set(points)) < 2:
        raise ValueError(
            f"data.validation={config.validation} needs pairs with two different sources to hold some out, but "
            f"{config.path!r} holds {len(set(points))}: use more, or name others in data.pairs.validation"
        )
    held = held_out(points, config.validation)
    train = [pair for pair, out in zip(found, held, strict=True) if not out]
    return train, [pair for pair, out in zip(found, held, strict=True) if out]


def _existing(path: pathlib.Path, where: str) -> pathlib.Path:
    if not path.is_file():
        raise ValueError(f"{where}: there is no file {str(path)!r}; give {_FORMS}")
    return path


def _lines(path: pathlib.Path) -> Iterator[tuple[int, str]]:
    """Each line with its number, from 1."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):  # split at "\n" alone
                try:
                    text = line.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    place = f"{path}, line {number}, is not UTF-8 (byte {error.start} of the line)"
                    raise ValueError(f"{place}: convert the file") from None
                yield number, text
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None


def _parallel(source: pathlib.Path, target: pathlib.Path) -> Iterator[Pair]:
    files = (_lines(source), _lines(target))
    for number, (left, right) in enumerate(itertools.zip_longest(*files), 1):
        if left is None or right is None:
            longer, shorter = (source, target) if right is None else (target, source)
            count = number + sum(1 for file in files for _ in file)
            raise ValueError(
                f"{longer} has {count} lines, and {shorter} has {number - 1}: line {number} of {longer} has no partner"
            )
        yield Pair(f"{source.name}, line {number}", left[1], right[1])


def _columns(config: Data, source: str, target: str) -> tuple[str, str]:
    """The columns that the configuration names, or else these."""
    wanted = config.pairs
    return (source, target) if wanted.source is None else (wanted.source, wanted.target)


def _table(path: pathlib.Path, config: Data) -> Iterator[Pair]:
    lines = _lines(path)
    wanted = _columns(config, "1", "2")
    if all(re.fullmatch("[0-9]+", name) for name in wanted):
        indices = [int(name) - 1 for name in wanted]
        if min(indices) < 0:
            raise ValueError(f"data.pairs: the columns of {path} are counted from 1, but {wanted} were asked for")
    else:
        header = next(lines, (1, ""))[1].split("\t")
        for name in wanted:
            if name not in header:
                raise ValueError(f"{path}, line 1, names no column {name!r}: choose among {', '.join(header)}")
        indices = [header.index(name) for name in wanted]
    for number, line in lines:
        cells = line.split("\t")
        if len(cells) <= max(indices):
            raise ValueError(
                f"{path}, line {number}, has no column {max(indices) + 1}, only {len(cells)}: mend the line, or choose "
                "other columns in data.pairs"
            )
        yield Pair(f"{path.name}, line {number}", *(cells[index] for index in indices))


def _objects(path: pathlib.Path, config: Data) -> Iterator[Pair]:
    keys = _columns(config, "source", "target")
    for number, line in _lines(path):
        where = f"{path}, line {number},"
        try:
            row = json.loads(line)
        except (RecursionError, ValueError) as error:
            raise ValueError(f"{where} is not JSON ({error}): mend the line") from None
        if not isinstance(row, dict):
            raise ValueError(f"{where} holds {type(row).__name__}, not an object: write {{...}} with two texts")
        for key in keys:
            if key not in row:
                raise ValueError(f"{where} has no key {key!r}, only {', '.join(row)}: choose others in data.pairs")
            if not isinstance(row[key], str):
                raise ValueError(f"{where} holds {type(row[key]).__name__} at {key!r}, not text: choose another key")
            try:
                row[key].encode()
            except UnicodeEncodeError:
                raise ValueError(f"{where} holds half a surrogate pair at {key!r}: mend the escape") from None
        yield Pair(f"{path.name}, line {number}", *(row[key] for key in keys))


def _tfds(path: str, config: Data, where: str) -> Iterator[Pair]:
    name, at, split = path.partition("@")
    if not name or (at and not split):
        raise ValueError(f"{where} leaves a name out: give 'tfds:NAME[/CONFIG][:VERSION][@SPLIT]'")
    builder = datasets.open_dataset(name, config.tfds.folder, where=where, shelf="translate")
    split, asked = (split, "split") if at else (config.tfds.split, "data.tfds.split")
    features = config.pairs.source, config.pairs.target
    if features == (None, None):
        features = builder.info.supervised_keys or ()
        if len(features) != 2 or not all(isinstance(feature, str) for feature in features):
            names = ", ".join(sorted(builder.info.features))
            raise ValueError(
                f"{where} does not say what is translated into what: choose data.pairs.source and data.pairs.target "
                f"among {names}"
            )
    settings = dict(zip(features, ("data.pairs.source", "data.pairs.target"), strict=True))
    for feature, setting in settings.items():
        datasets.check_feature(builder, feature, where=where, setting=setting)
    for index, row in enumerate(datasets.rows(builder, split, where=where, setting=asked)):
        place = f"{where} row {index}"
        texts = [datasets.text(row[feature], where=place, setting=settings[feature]) for feature in features]
        yield Pair(f"{name}/{split}/{index}", *texts)


def _task(path: str, count: int, where: str) -> Iterator[Pair]:
    match = re.fullmatch(r"([^:]*)(?::([0-9]+)-([0-9]+))?", path)
    if match is None:
        raise ValueError(f"{where} is not written as 'task:NAME[:SHORTEST-LONGEST]', such as 'task:reverse:1-16'")
    name, *lengths = match.groups()
    try:
        return tasks.generate(name, count, *(None if length is None else int(length) for length in lengths))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
