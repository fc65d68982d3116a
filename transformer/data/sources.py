"""Documents of text, in an order that is the same on every run.

`Data.path` names the source: the standard library of the running interpreter, a text file, a folder of text files, or a
prepared TensorFlow Dataset.
"""

from __future__ import annotations

import os
import pathlib
import sysconfig
from collections.abc import Iterator
from typing import NamedTuple

from transformer.data import datasets
from transformer.data.config import STDLIB, TFDS, Data, Tfds

# Tests hold data on purpose broken or generated; `encodings` is mostly tables; the rest are third-party packages.
_SKIPPED_FOLDERS = {"test", "tests", "idle_test", "encodings", "site-packages", "dist-packages", "__pycache__"}
# Generated: tables of names and codes, the interpreter's build settings, and the topics, which are read as documents.
_SKIPPED_FILES = {"html/entities.py", "pydoc_data/topics.py", "sitecustomize.py", "usercustomize.py"}
_SKIPPED_PREFIXES = ("config-", "_sysconfigdata", "lib-dynload")


class Document(NamedTuple):
    """One piece of text. `name` says where it came from, for messages; only `text` reaches the corpus."""

    name: str
    text: str


class Pair(NamedTuple):
    """Two texts that belong together. `name` says where they came from, for messages, such as "train.en, line 12"."""

    name: str
    source: str
    target: str


def documents(config: Data) -> Iterator[Document]:
    """The documents of `config.path`, empty ones left out.

    Nothing is copied or downloaded. The standard library's text depends on the version of the interpreter.

    Raises:
      ValueError: if the source does not exist, is not prepared, or holds text that is not UTF-8.
    """
    for document in _source(config):
        if document.text:
            yield document


def _source(config: Data) -> Iterator[Document]:
    if config.path == STDLIB:
        return _stdlib(config.limit)
    if config.path.startswith(TFDS):
        return _tfds(config.path.removeprefix(TFDS), config.tfds)
    path = pathlib.Path(config.path).expanduser()
    if path.is_file():
        return iter([Document(path.name, _read(path))])
    if path.is_dir():
        return _folder(path, config.suffixes)
    raise ValueError(f"data.path={config.path!r} does not exist: give 'stdlib', a text file, a folder or 'tfds:NAME'")


def _read(path: pathlib.Path) -> str:
    # Bytes first: reading as text would rewrite line ends, and bits per byte would no longer be those of the file.
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start}): convert it or take it out of data.path") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None


def _folder(folder: pathlib.Path, suffixes: tuple[str, ...]) -> Iterator[Document]:
    wanted = {suffix.lower() for suffix in suffixes}
    for path in sorted(folder.rglob("*"), key=lambda path: path.relative_to(folder).as_posix()):
        relative = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in relative.parts)
        if not hidden and path.suffix.lower() in wanted and path.is_file():
            yield Document(relative.as_posix(), _read(path))


def _stdlib(limit: int) -> Iterator[Document]:
    """The help topics of the language reference, then the library's modules, up to `limit` bytes of UTF-8."""
    left = limit
    for document in _stdlib_whole():
        left -= len(document.text.encode())
        if left < 0:
            return
        yield document


def _stdlib_whole() -> Iterator[Document]:
    from pydoc_data import topics  # half a megabyte that only this source needs

    for name in sorted(topics.topics):
        yield Document(f"topics/{name}", topics.topics[name])
    root = pathlib.Path(sysconfig.get_paths()["stdlib"])
    for relative in sorted(_modules(root)):
        yield Document(relative, _read(root / relative))


def _modules(root: pathlib.Path) -> Iterator[str]:
    for folder, children, files in os.walk(root):
        # Pruned in place, so that a large site-packages is never walked.
        children[:] = [c for c in children if c not in _SKIPPED_FOLDERS and not c.startswith(_SKIPPED_PREFIXES)]
        for file in files:
            relative = (pathlib.Path(folder) / file).relative_to(root).as_posix()
            if file.endswith(".py") and relative not in _SKIPPED_FILES and not file.startswith(_SKIPPED_PREFIXES):
                yield relative


def _tfds(name: str, options: Tfds) -> Iterator[Document]:
    where = f"data.path='{TFDS}{name}'"
    builder = datasets.open_dataset(name, options.folder, where=where, shelf="text")
    datasets.check_feature(builder, options.feature, where=where, setting="data.tfds.feature")
    for index, row in enumerate(datasets.rows(builder, options.split, where=where, setting="data.tfds.split")):
        value = row[options.feature]
        text = datasets.text(value, where=f"{where} row {index}", setting="data.tfds.feature")
        yield Document(f"{name}/{options.split}/{index}", text)
