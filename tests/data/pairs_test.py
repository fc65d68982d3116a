"""Each way to name pairs gives them in order, and says in one line what is wrong."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import textwrap

import pytest

from transformer.data.config import Data, Objective, Pairs, Tfds
from transformer.data.pairs import divide_pairs, pairs
from transformer.data.sources import Pair


def of_pairs(**fields):
    return Data(objective=Objective("pairs"), **fields)


def _error(config, path=None):
    with pytest.raises(ValueError) as caught:
        list(pairs(config, path))
    message = str(caught.value)
    assert "\n" not in message
    return message


def _texts(config, path=None):
    return [(source, target) for _, source, target in pairs(config, path)]


def _write(folder, **files):
    """Writes NAME_SUFFIX to NAME.SUFFIX, and gives the paths."""
    paths = []
    for name, content in files.items():
        paths.append(folder / name.replace("_", "."))
        paths[-1].write_bytes(content if isinstance(content, bytes) else content.encode())
    return [str(path) for path in paths]


def test_parallel_files(tmp_path):
    source, target = _write(tmp_path, train_en="one\ntwo words\n", train_de="eins\r\nzwei Wörter")
    expected = [Pair("train.en, line 1", "one", "eins"), Pair("train.en, line 2", "two words", "zwei Wörter")]
    assert list(pairs(of_pairs(path=f"{source},{target}"))) == expected
    assert list(pairs(of_pairs(path=f"{source}, {target}"))) == expected
    assert list(pairs(of_pairs(path="no,where"), f"{source},{target}")) == expected


def test_a_line_ends_at_a_line_feed_alone(tmp_path):
    odd = "a\u2028b\x85c\x0bd\x0ce\rf\x1cg"
    source, target = _write(tmp_path, a_txt=f"{odd}\n\nlast\n", b_txt="\ufeff1\r\n \n\ufeff3\n")
    assert _texts(of_pairs(path=f"{source},{target}")) == [(odd, "1"), ("", " "), ("last", "\ufeff3")]


def test_a_home_folder_is_spelt_with_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    _write(tmp_path, a_txt="1\n", b_txt="2\n", c_tsv="1\t2\n")
    assert _texts(of_pairs(path="~/a.txt,~/b.txt")) == _texts(of_pairs(path="~/c.tsv")) == [("1", "2")]


@pytest.mark.parametrize("swapped", [False, True])
def test_refuses_lines_without_partner(tmp_path, swapped):
    long, short = _write(tmp_path, a_en="1\n2\n3\n4\n5", a_de="1\n2\n")
    path = f"{short},{long}" if swapped else f"{long},{short}"
    assert _error(of_pairs(path=path)) == f"{long} has 5 lines, and {short} has 2: line 3 of {long} has no partner"


def test_refuses_text_that_is_not_utf8_and_names_the_line(tmp_path):
    good, bad = _write(tmp_path, a_txt="1\n2\n", b_txt=b"1\ncaf\xe9\n")
    assert (
        _error(of_pairs(path=f"{good},{bad}")) == f"{bad}, line 2, is not UTF-8 (byte 3 of the line): convert the file"
    )


def test_refuses_missing_files(tmp_path):
    (good,) = _write(tmp_path, a_txt="1\n")
    for path in (f"{good},{tmp_path}/b.txt", f"{tmp_path}/b.txt,{good}"):
        assert f"data.path='{path}': there is no file '{tmp_path}/b.txt'" in _error(of_pairs(path=path))
    assert f"held-out pairs '{good},no.txt': there is no file 'no.txt'" in _error(of_pairs(), f"{good},no.txt")
    assert f"there is no file '{tmp_path}'" in _error(of_pairs(path=f"{good},{tmp_path}"))
    assert "there is no file 'no.tsv'" in _error(of_pairs(path="no.tsv"))
    assert "there is no file 'no.jsonl'" in _error(of_pairs(path="no.jsonl"))


def test_refuses_a_file_that_goes_away(tmp_path):
    (path,) = _write(tmp_path, a_tsv="1\t2\n")
    found = pairs(of_pairs(path=path))
    (tmp_path / "a.tsv").unlink()
    with pytest.raises(ValueError, match="cannot be read: No such file or directory"):
        next(found)


@pytest.mark.parametrize("path", ["stdlib", "no/such", "a,b,c", "a,", ",", "."])
def test_refuses_other_paths_and_lists_the_forms(path):
    message = _error(of_pairs(path=path))
    assert message.startswith(f"data.path={path!r} names no pairs: give 'SOURCE,TARGET'")
    assert all(form in message for form in (".tsv", ".jsonl", "tfds:NAME", "task:NAME"))
    assert "one text file" not in message


def test_says_that_one_text_file_is_half(tmp_path):
    (path,) = _write(tmp_path, a_txt="1\n")
    assert _error(of_pairs(path=path)).endswith("It is one text file, and pairs need two: 'SOURCE,TARGET'")


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ((), [("en", "de"), ("1", "2"), ('"a', 'b"')]),
        (("1", "2"), [("en", "de"), ("1", "2"), ('"a', 'b"')]),
        (("3", "1"), [("note,x", "en"), ("3", "1"), ("", '"a')]),
        (("de", "en"), [("2", "1"), ('b"', '"a')]),
        (("note,x", "de"), [("3", "2"), ("", 'b"')]),
    ],
)
def test_tables(tmp_path, columns, expected):
    (path,) = _write(tmp_path, a_TSV='en\tde\tnote,x\r\n1\t2\t3\r\n"a\tb"\t')
    config = of_pairs(path=path, pairs=Pairs(*columns))
    assert _texts(config) == expected
    assert next(iter(pairs(config))).name == f"a.TSV, line {4 - len(expected)}"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (("0", "1"), "data.pairs: the columns of {path} are counted from 1, but ('0', '1') were asked for"),
        (("en", "fr"), "{path}, line 1, names no column 'fr': choose among en, de"),
        (("en", "2"), "{path}, line 1, names no column '2': choose among en, de"),
        ((), "{path}, line 3, has no column 2, only 1: mend the line, or choose other columns in data.pairs"),
        (("de", "en"), "{path}, line 3, has no column 2, only 1: mend the line, or choose other columns in data.pairs"),
        (("1", "3"), "{path}, line 1, has no column 3, only 2: mend the line, or choose other columns in data.pairs"),
    ],
)
def test_refuses_columns_that_are_not_there(tmp_path, columns, message):
    (path,) = _write(tmp_path, a_tsv="en\tde\n1\t2\nalone\n")
    assert _error(of_pairs(path=path, pairs=Pairs(*columns))) == message.format(path=path)


def test_a_comma_in_the_name_of_a_table(tmp_path):
    (table,) = _write(tmp_path, **{"a,b_tsv": "1\t2\n"})
    assert _texts(of_pairs(path=table)) == [("1", "2")]
    source, target = _write(tmp_path, c_tsv="1\t2\n", d_tsv="3\n")
    assert _texts(of_pairs(path=f"{source},{target}")) == [("1\t2", "3")]


def test_lines_of_json(tmp_path):
    rows = [
        {"source": "a\nb\u2028", "target": "é", "en": "1", "de": "2"},
        {"target": "", "source": "c", "en": "", "de": "3"},
    ]
    (path,) = _write(tmp_path, a_jsonl="\n".join([json.dumps(rows[0]), json.dumps(rows[1], ensure_ascii=False)]))
    assert list(pairs(of_pairs(path=path))) == [
        Pair("a.jsonl, line 1", "a\nb\u2028", "é"),
        Pair("a.jsonl, line 2", "c", ""),
    ]
    assert _texts(of_pairs(path=path, pairs=Pairs("de", "en"))) == [("2", "1"), ("3", "")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "is not JSON ("),
        ('{"source": "1", "target"}', "is not JSON ("),
        ("[" * 100_000, "is not JSON ("),
        ('["1", "2"]', "holds list, not an object"),
        ('{"source": "1", "traget": "2"}', "has no key 'target', only source, traget"),
        ('{"source": "1", "target": 2}', "holds int at 'target', not text"),
        ('{"source": "\\ud83d", "target": "2"}', "holds half a surrogate pair at 'source'"),
    ],
)
def test_refuses_lines_that_hold_no_pair(tmp_path, line, message):
    (path,) = _write(tmp_path, a_jsonl=f'{{"source": "1", "target": "2"}}\n{line}\n')
    assert _error(of_pairs(path=path)).startswith(f"{path}, line 2, {message}")


def test_tasks():
    config = of_pairs(path="task:reverse:3-4", pairs=Pairs(count=30))
    found = list(pairs(config))
    assert found == list(pairs(config))
    assert len(found) == 30
    assert all(target == source[::-1] and len(source) in (3, 4) for _, source, target in found)
    assert {len(source) for _, source, _ in pairs(config, "task:copy:17-18")} == {17, 18}
    assert max(len(source) for source, _ in _texts(of_pairs(path="task:copy"))) == 16
    assert len(_texts(of_pairs(path="task:dates"))) == Pairs().count


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("task:sotr", "data.path='task:sotr': no task is called 'sotr'; the nearest are sort"),
        ("task:", "data.path='task:': no task is called ''"),
        ("task:copy:5", "data.path='task:copy:5' is not written as 'task:NAME[:SHORTEST-LONGEST]'"),
        ("task:copy:-1-5", "data.path='task:copy:-1-5' is not written as"),
        ("task:copy:0-5", "data.path='task:copy:0-5': lengths 0-5 cannot work"),
        ("task:addition:1-5000", "data.path='task:addition:1-5000': lengths 1-5000 cannot work"),
        ("task:dates:1-5", "data.path='task:dates:1-5': the task 'dates' has no lengths"),
    ],
)
def test_refuses_tasks_that_are_not_there(path, message):
    assert _error(of_pairs(path=path)).startswith(message)


_PREPARE = """
    import sys, numpy as np, tensorflow_datasets as tfds
    from etils import epath

    class Tiny(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in ("de-en", "unsaid")]
        pkg_dir_path = epath.Path(sys.argv[1])

        def _info(self):
            features = tfds.features.Translation(languages=("de", "en"))
            if self.builder_config.name == "unsaid":
                features = tfds.features.FeaturesDict({"de": tfds.features.Text(), "n": tfds.features.Scalar(np.int64)})
                return self.dataset_info_from_configs(features=features)
            return self.dataset_info_from_configs(features=features, supervised_keys=("de", "en"))

        def _split_generators(self, _):
            return {"train": self._generate_examples(5), "validation": self._generate_examples(2)}

        def _generate_examples(self, count):
            for i in range(count):
                row = {"de": f"für {i} von {count}", "en": f"for {i} of {count}", "n": i}
                yield i, {name: row[name] for name in self.info.features}

    for name in ("de-en", "unsaid"):
        Tiny(config=name, data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder that holds the dataset `tiny`, prepared by another process, so that this one knows no code for it."""
    folder = tmp_path_factory.mktemp("tfds")
    script = textwrap.dedent(_PREPARE)
    subprocess.run([sys.executable, "-c", script, str(folder)], check=True, capture_output=True)
    return folder


def _tiny(folder, path="tfds:tiny/de-en", split="train", **columns):
    return of_pairs(path=path, tfds=Tfds(folder=str(folder), split=split), pairs=Pairs(**columns))


def _translations(count):
    return {(f"für {index} von {count}", f"for {index} of {count}") for index in range(count)}


@pytest.mark.parametrize("path", ["tfds:tiny/de-en", "tfds:tiny/de-en:1.0.0", "tfds:tiny/de-en@train"])
def test_a_prepared_dataset(prepared, path):
    found = list(pairs(_tiny(prepared, path)))
    assert {(source, target) for _, source, target in found} == _translations(5)
    assert found == list(pairs(_tiny(prepared, path)))
    assert found[0].name == f"{path.removeprefix('tfds:').partition('@')[0]}/train/0"


def test_a_dataset_in_the_other_direction(prepared):
    found = _texts(_tiny(prepared, source="en", target="de"))
    assert {(target, source) for source, target in found} == _translations(5)


def test_the_split_of_a_dataset(prepared):
    assert set(_texts(_tiny(prepared, split="validation"))) == _translations(2)
    assert set(_texts(_tiny(prepared), "tfds:tiny/de-en@validation")) == _translations(2)
    assert len(_texts(_tiny(prepared), "tfds:tiny/de-en@train[:3]")) == 3
    assert "has no split='test': choose among train, validation" in _error(_tiny(prepared), "tfds:tiny/de-en@test")
    assert "has no data.tfds.split='test': choose among train" in _error(_tiny(prepared, split="test"))


@pytest.mark.parametrize("path", ["tfds:@train", "tfds:tiny/de-en@"])
def test_refuses_a_dataset_or_split_without_a_name(prepared, path):
    assert "leaves a name out" in _error(_tiny(prepared), path)


def test_refuses_features_that_hold_no_text(prepared):
    message = _error(_tiny(prepared, source="de", target="fr"))
    assert "has no data.pairs.target='fr': choose one of de, en" in message
    message = _error(_tiny(prepared, "tfds:tiny/unsaid", source="de", target="n"))
    assert "row 0 holds int, not text: choose another data.pairs.target" in message
    message = _error(_tiny(prepared, "tfds:tiny/unsaid"))
    assert "choose data.pairs.source and data.pairs.target among de, n" in message


@pytest.mark.parametrize("name", ["wmt14_translate/de-en", "tiny/fr-en", "no_such_thing"])
def test_refuses_to_download(prepared, name):
    message = _error(_tiny(prepared, f"tfds:{name}@validation"))
    assert message.startswith(f"data.path='tfds:{name}@validation' is not prepared on this machine")
    assert f"tfds.builder({name!r}, data_dir={str(prepared)!r}, file_format='array_record').download_and_p" in message


def test_the_command_that_prepares_a_dataset_is_one(tmp_path):
    """Up to the download, which is left out: the library knows the dataset, and what it translates into what."""
    message = _error(_tiny(tmp_path, "tfds:wmt14_translate/de-en"))
    command = message.partition('run python -c "')[2].removesuffix('"')
    shown = command.replace("tfds.builder", "print(tfds.builder").replace(
        "download_and_prepare()", "info.supervised_keys)"
    )
    assert shown.count("print") == shown.count("supervised_keys") == 1
    process = subprocess.run([sys.executable, "-c", shown], check=True, capture_output=True, text=True)
    assert process.stdout.strip() == "('de', 'en')"


def test_pairs_are_divided_by_their_sources():
    found = [Pair("", str(index % 700), str(index)) for index in range(2000)]
    train, validation = divide_pairs(found, of_pairs(validation=0.2))

    def held(pair):
        return int(hashlib.sha256(pair.source.encode()).hexdigest(), 16) / 2**256 < 0.2

    # Nobody of 700 is within 2^-48 of the border, so that the rounding of the hash is not seen.
    assert validation == [pair for pair in found if held(pair)]
    assert train == [pair for pair in found if not held(pair)]
    assert not {pair.source for pair in train} & {pair.source for pair in validation}


@pytest.mark.parametrize("share", [1e-9, 1 - 1e-9])
def test_neither_side_stays_empty(share):
    found = [Pair("", text, text) for text in "aabbb"]
    train, validation = divide_pairs(found, of_pairs(validation=share))
    assert sorted([len(train), len(validation)]) == [2, 3]
    assert {pair.source for pair in train} != {pair.source for pair in validation}


@pytest.mark.parametrize("found", [[], [Pair("", "a", "1"), Pair("", "a", "2")]])
def test_refuses_to_divide_what_is_one(found):
    with pytest.raises(ValueError, match=r"two different sources to hold some out, but 'x,y' holds [01]: use more"):
        divide_pairs(found, of_pairs(path="x,y"))
