"""Files and lines in, files and lines out, by the script on a run that no training made."""

import json
import sys

import pytest

from experiments import scores

TRANSLATE = "experiments.translate"
LINES = ["abc", "a" * 40, "d", "dcbadcba", "b" * 33, "abc"]

# What a terminal, or a pipe, hands on.
TYPED = """
import io, runpy, sys

class Typed(io.StringIO):
    def isatty(self):
        return {typed}

sys.stdin = Typed({content!r})
runpy.run_module("experiments.translate", run_name="__main__", alter_sys=True)
"""

# A model may write what no encoding can spell, and two lines.
WRITES = """
import pathlib, sys
from experiments import translate
from experiments.translation import Output

lines = translate.spelt([[Output("a\\ud800", -0.5, 1.0)], [], [Output("b\\nc", -2.0, 3.0)]], 1)
pathlib.Path(sys.argv[1]).write_text("".join(lines))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("translate")
    (folder / "in.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(LINES).encode())  # as Windows writes it
    (folder / "long.txt").write_text("ab\n" + "a" * 41 + "\n")
    (folder / "gap.txt").write_text("ab\n\nab\n")
    (folder / "empty.txt").write_text("\n")
    (folder / "latin.txt").write_bytes(b"na\xefve\n")
    for name, (typed, content) in {
        "terminal": (True, "ab\n\né\ncd"),
        "pipe": (False, "\ufeffab\r\ncd\n\nab\n"),
    }.items():
        (folder / f"{name}.py").write_text(TYPED.format(typed=typed, content=content))
    (folder / "writes.py").write_text(WRITES)
    return folder


def test_a_file_gives_a_file_whatever_is_searched_together(scripts, paired, folder):
    start = [f"--workdir={paired.workdir / 'run'}", "--beams=2"]
    read = [*start, f"--input={folder / 'in.txt'}"]
    pairs = paired.experiment.data.path
    filed, single, several, mean, cut, terminal, pipe, written, measured, odd = scripts(
        [
            [TRANSLATE, *read, f"--output={folder / 'out.txt'}", "--batch_size=3"],
            [TRANSLATE, *read, "--batch_size=1"],
            [TRANSLATE, *read, "--batch_size=3", "--count=2"],
            [TRANSLATE, *read, "--batch_size=3", "--average=3", "--length_penalty=0"],
            [TRANSLATE, *start, f"--input={folder / 'long.txt'}", "--truncate", "--batch_size=1"],
            [str(folder / "terminal.py"), *start],
            [str(folder / "pipe.py"), *start, "--count=2"],
            [
                TRANSLATE,
                *start,
                f"--input={paired.workdir / 'train.en'}",
                f"--output={folder / 'de.txt'}",
                "--batch_size=3",
            ],
            ["experiments.evaluate", *start, f"--pairs={pairs}", "--json", "--batch_size=3", "--tokenize=char"],
            [str(folder / "writes.py"), str(folder / "odd.txt")],
        ]
    )
    for process in (filed, single, several, mean, cut, written, measured, odd):
        assert (process.returncode, process.stderr) == (0, ""), process.stderr
    outputs = (folder / "out.txt").read_text().split("\n")
    assert filed.stdout == "" and len(outputs) == 7 and outputs.pop() == ""
    assert single.stdout == (folder / "out.txt").read_text()
    assert outputs[0] == outputs[5] and len({*outputs}) > 2  # equal sources, and others
    rows = [line.split("\t") for line in several.stdout.splitlines()]
    assert [row[0] for row in rows] == [str(number) for number in range(1, 7) for _ in range(2)]
    assert [row[2] for row in rows[::2]] == outputs
    assert all(float(best[1]) >= float(next_[1]) for best, next_ in zip(rows[::2], rows[1::2], strict=True))
    assert mean.stdout.count("\n") == 6 and mean.stdout != single.stdout

    texts = cut.stdout.splitlines()
    assert len(texts) == 2 and texts[1] == outputs[1]  # one letter more was cut off
    assert terminal.returncode == 0 and terminal.stdout.startswith(f"> {texts[0]}\n> > > ")
    assert terminal.stderr.startswith("error: ") and "'é' (U+00E9)" in terminal.stderr
    answered = [line.split("\t") for line in pipe.stdout.splitlines()]
    assert [row[0] for row in answered] == ["1", "1", "2", "2"] and answered[0][2] == texts[0]
    assert (pipe.returncode, pipe.stderr) == (
        2, "error: standard input, line 3 is empty: take it out, or give it some text\n"
    )  # fmt: skip
    assert (folder / "odd.txt").read_text() == "a?\n\nb c\n"
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]

    hypotheses, references = (
        path.read_text().split("\n")[:-1] for path in (folder / "de.txt", paired.workdir / "train.de")
    )
    found = json.loads(measured.stdout)
    assert found["bleu"] == scores.bleu(hypotheses, references, "char").value > 0
    assert found["chrf"] == scores.chrf(hypotheses, references).value
    assert found["note"].startswith("the run was trained on these pairs")
    assert found["step"] == 3 and "tok:char" in found["bleu_signature"]


def test_a_closed_standard_input_is_refused(imported, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ValueError, match="standard input is closed: name a file with --input"):
        imported(TRANSLATE).answer(None, None)


def test_mistakes_are_one_line_and_nothing_is_written(scripts, paired, made, folder, tmp_path):
    here = f"--workdir={paired.workdir / 'run'}"
    given = [here, f"--input={folder / 'in.txt'}"]
    mistakes = {
        "absent.txt cannot be read: No such file": [here, f"--input={folder / 'absent.txt'}"],
        f"--output={tmp_path} cannot be written (it is there, and no file)": [*given, f"--output={tmp_path}"],
        "out.txt cannot be written (No such file or directory)": [
            *given, f"--output={tmp_path / 'absent' / 'out.txt'}", "--step=77"  # seen before the model is looked for
        ],
        "in.txt is the file of --input, which would be lost": [*given, f"--output={folder / 'in.txt'}"],
        "--output goes with --input": [here, f"--output={tmp_path / 'out.txt'}"],
        "empty.txt is empty: give a file": [here, f"--input={folder / 'empty.txt'}"],
        "latin.txt, line 1 is not UTF-8 (byte 2)": [here, f"--input={folder / 'latin.txt'}"],
        "gap.txt, line 2 is empty": [here, f"--input={folder / 'gap.txt'}", f"--output={tmp_path / 'out.txt'}"],
        "long.txt, line 2 has 42 tokens with its end, and step 3 reads at most 41": [
            here, f"--input={folder / 'long.txt'}", f"--output={tmp_path / 'out.txt'}"
        ],
        "--count=5 exceeds --beams=4": [*given, "--count=5"],
        "is no encoder with a decoder, so it has no source": [f"--workdir={made.workdir}", given[1]],
        "--workdir is missing": given[1:],
        "average=4: ": [*given, "--average=4"],
        "--beams=1001": [*given, "--beams=1001"],
        "length_penalty=nan: it must be a number": [*given, "--length_penalty=nan"],
    }  # fmt: skip
    for said, process in zip(mistakes, scripts([[TRANSLATE, *each] for each in mistakes.values()]), strict=True):
        assert (process.returncode, process.stdout) == (2, ""), (process.args, process.stderr)
        (line,) = process.stderr.splitlines()
        assert line.startswith("error: ") and said in line, line
    assert not list(tmp_path.iterdir())
