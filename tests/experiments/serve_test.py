"""Prompts in, a line for each out, with the texts that experiments.generate writes one by one."""

import json
import re

import pytest

SERVE, GENERATE = "experiments.serve", "experiments.generate"
PROMPTS = ["on and", "the", "a text that goes on", "two", "words of"]

# Sends lines through a pipe, each when all before it were answered, as one does who waits for answers.
TALK = """
import os, pathlib, runpy, threading, time

end, start = os.pipe()
os.dup2(end, 0)
output, until = pathlib.Path({output!r}), time.time() + 300

def talk():
    for number, line in enumerate({lines!r}):
        while number and output.read_text().count("\\n") < number and time.time() < until:
            time.sleep(0.02)
        os.write(start, line)
    os.close(start)

output.touch()
threading.Thread(target=talk).start()
runpy.run_module("experiments.serve", run_name="__main__", alter_sys=True)
"""


# Where standard input is closed, and where parameters are no numbers.
CLOSED = """
import runpy, sys

sys.stdin = None
runpy.run_module("experiments.serve", run_name="__main__", alter_sys=True)
"""
BROKEN = """
import dataclasses, runpy
import jax
from experiments import loading

load = loading.load

def broken(*options):
    trained = load(*options)
    return dataclasses.replace(trained, params=jax.tree.map(lambda leaf: leaf * float("nan"), trained.params))

loading.load = broken
runpy.run_module("experiments.serve", run_name="__main__", alter_sys=True)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serve")
    (folder / "in.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(PROMPTS).encode())  # as Windows writes it
    objects = [{"prompt": "the", "seed": 7, "length": 5}, {"prompt": "on", "id": "é"}, {"prompt": "two"}]
    objects.append({"prompt": "on and on " * 5, "id": "long"})
    (folder / "closed.py").write_text(CLOSED)
    (folder / "broken.py").write_text(BROKEN)
    (folder / "in.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in objects))
    return folder


def parsed(content):
    return {line["id"]: line for line in map(json.loads, content.splitlines())}


def test_each_prompt_has_the_text_that_generate_writes(scripts, lettered, folder):
    out, answers = folder / "out.jsonl", folder / "answers.jsonl"
    wrong = [b'{"prompt": }', b"\xff", '{"prompt": "É", "id": "x"}'.encode()]
    lines = [b'{"prompt": "on and"}', *wrong, b'{"prompt": "two"}']
    (folder / "talk.py").write_text(TALK.format(output=str(answers), lines=[line + b"\n" for line in lines]))
    out.write_text("what was there\n")
    how = [f"--workdir={lettered.workdir}", "--top_k=5", "--temperature=2.0", "--length=9", "--seed=7"]
    filed, objects, talked, sampled = scripts(
        [
            [SERVE, *how, f"--input={folder / 'in.txt'}", "--slots=3", f"--output={out}"],
            [SERVE, *how, f"--input={folder / 'in.jsonl'}", "--slots=3", "--capacity=32"],
            [str(folder / "talk.py"), *how, "--json", "--slots=3", f"--output={answers}"],
            [GENERATE, *how, "--prompt=the", "--samples=2"],
        ]
    )
    for process in (filed, objects, talked, sampled):
        assert process.returncode == 0, process.stderr
    rows = parsed(out.read_text())
    assert [rows[number]["prompt"] for number in range(1, 6)] == PROMPTS and filed.stdout == ""
    for row in rows.values():
        assert list(row) == ["id", "prompt", "text", "tokens", "reason"]
        assert (row["tokens"], row["reason"]) == (9, "length")
    first, second = sampled.stdout.splitlines()
    assert "the" + rows[2]["text"] == second != first
    # 8 turns each after the first token, in two rounds of three rows.
    assert re.fullmatch(r"5 requests, 45 tokens in \d+\.\d s: \d+\.\d tokens/s, 83% of 3 slots busy\n", filed.stderr)

    made = parsed(objects.stdout)
    assert first.startswith("the" + made[1]["text"]) and made[1]["tokens"] == len(made[1]["text"]) == 5
    assert made["é"]["tokens"] == made[3]["tokens"] == made["long"]["tokens"] == 9
    assert made["long"]["cut"] == 50 - (32 - 8) and "cut" not in made[3]  # the last of nine tokens takes no place
    answered = parsed(answers.read_text())
    assert list(answered) == [1, 2, 3, "x", 5]  # one after the other, as each was waited for
    assert answered[1]["text"] == rows[1]["text"]
    assert answered[2]["error"].startswith("line 2 is not JSON: ") and answered[2]["prompt"] is None
    assert answered[3]["error"].startswith("line 3 is not UTF-8 (byte 0)")
    assert answered["x"]["prompt"] == "É" and answered["x"]["error"].startswith("line 4: text[0] is 'É'")
    assert (answered["x"]["reason"], answered["x"]["tokens"]) == ("error", 0)
    assert talked.stderr.startswith("5 requests (3 refused), 18 tokens in ")


def test_mistakes_are_one_line_and_nothing_is_written(scripts, paired, lettered, folder, tmp_path):
    here, texts = f"--workdir={lettered.workdir}", f"--input={folder / 'in.txt'}"
    wrong = {
        "line 2 is not JSON: Expecting value": ['{"prompt": "on"}', '{"prompt": }'],
        "line 1 must be an object with a prompt, such as": ['{"text": "on"}'],
        "line 1 must be an object with": ["[1]"],
        "line 1 has a field 'lenght': there are prompt, length": ['{"prompt": "on", "lenght": 3}'],
        "line 1: length=True must be a whole number": ['{"prompt": "on", "length": true}'],
        "line 1: id=None must be text or a whole number": ['{"prompt": "on", "id": null}'],
        "line 1: length=0 must lie between 1 and 1000000": ['{"prompt": "on", "length": 0}'],
        "line 1: seed=-1 must lie between 0 and 4294967295": ['{"prompt": "on", "seed": -1}'],
        "line 2: text[0] is 'É' (U+00C9), which": ['{"prompt": "on", "length": 1}', '{"prompt": "\\u00c9"}'],
        "is empty: give a file with one prompt a line": [""],
    }
    (folder / "abc.txt").write_text("abc\n")
    both = [f"--workdir={paired.workdir / 'run'}", f"--input={folder / 'abc.txt'}"]
    output, asked = f"--output={tmp_path / 'out.jsonl'}", {}
    for number, (said, lines) in enumerate(wrong.items()):
        (folder / f"{number}.jsonl").write_text("\n".join(lines) + "\n")
        asked[said] = [here, f"--input={folder / f'{number}.jsonl'}", output]
    asked |= {
        "absent.txt cannot be read: No such file": [here, f"--input={folder / 'absent.txt'}", output],
        f"--output={tmp_path} is a folder: name a file": [here, texts, f"--output={tmp_path}"],
        "is the file of --input, which would be lost": [here, texts, f"--output={folder / 'in.txt'}"],
        f"there is no folder {tmp_path / 'absent'}": [here, texts, f"--output={tmp_path / 'absent' / 'out'}"],
        "--top_k and --greedy exclude each other": [here, texts, output, "--top_k=3", "--greedy"],
        "capacity=33 exceeds the model's config.length=32": [here, texts, output, "--capacity=33", "--length=9"],
        "for a model with an encoder use generate": [*both, output],
        "--workdir is missing": [texts],
        "standard input is closed: name a file with --input": [str(folder / "closed.py"), here, output],
        "step 3 has parameters that are not finite": [str(folder / "broken.py"), here, texts, output],
    }
    lines = [each if each[0].endswith(".py") else [SERVE, *each] for each in asked.values()]
    for said, process in zip(asked, scripts(lines), strict=True):
        assert (process.returncode, process.stdout) == (2, ""), (process.args, process.stderr)
        (line,) = process.stderr.splitlines()
        assert line.startswith("error: ") and said in line, line
    assert not list(tmp_path.iterdir())
