"""What the flags choose, seen in what is written."""

import re

GENERATE = "experiments.generate"


def test_flags_choose_the_method_the_step_the_seed_and_how_much(scripts, lettered):
    asked = {
        "greedy": ["--greedy", "--next=10"],
        "one": ["--top_k=1", "--samples=2"],
        "nucleus": ["--top_p=0.0001"],
        "likely": ["--min_p=1.0"],
        "cold": ["--temperature=0.00001"],
        "drawn": ["--seed=1", "--samples=2"],
        "short": ["--greedy", "--length=1"],
        "older": ["--greedy", "--step=1"],
        "varied": ["--greedy", "--repetition_penalty=1e6"],
    }
    start = [GENERATE, f"--workdir={lettered.workdir}", "--prompt=on and", "--length=12"]
    processes = dict(zip(asked, scripts([[*start, *each] for each in asked.values()]), strict=True))
    for process in processes.values():
        assert process.returncode == 0, process.stderr
        assert process.stderr == "" and process.stdout.startswith("on and")
    out = {name: process.stdout for name, process in processes.items()}
    assert out["nucleus"] == out["likely"] == out["cold"]
    assert out["one"] == 2 * out["cold"]
    assert out["greedy"].startswith(out["cold"])
    probabilities = [float(number) for number in re.findall(r"│ ([01]\.\d{4}) +│", out["greedy"])]
    assert len(probabilities) == 10 and probabilities == sorted(probabilities, reverse=True)
    assert "likeliest next tokens after 'on and'" in " ".join(out["greedy"].split())
    first, second = out["drawn"].split("on and")[1:]
    assert first != second
    assert [len(out[name]) for name in ("cold", "short")] == [6 + 12 + 1, 6 + 1 + 1]
    assert out["cold"].startswith(out["short"].removesuffix("\n"))
    assert len({out["cold"], out["older"], out["varied"], f"on and{first}"}) == 4


def test_mistakes_are_one_line(scripts, made, lettered, tmp_path):
    here, letters = f"--workdir={made.workdir}", f"--workdir={lettered.workdir}"
    mistakes = {
        "--top_k and --top_p exclude each other": [here, "--top_k=3", "--top_p=0.9"],
        "--min_p and --greedy exclude each other": [here, "--greedy", "--min_p=0.1"],
        "k=0": [here, "--top_k=0"],
        "p=1.5": [here, "--top_p=1.5"],
        "temperature=0": [here, "--temperature=0"],
        "--length=0": [here, "--length=0"],
        "choose one of [3, 2, 1], 'latest' or 'best'": [here, "--step=7"],
        "'É' (U+00C9), which is none of the 15 characters": [letters, "--prompt=É"],
        "prompt is empty": [letters],
        "length=33 leaves no room for a prompt": [letters, "--prompt=on", "--length=33"],
        "absent' does not exist, and is no name of a model": [f"--workdir={tmp_path / 'absent'}"],
        "--workdir is missing": [],
        "unexpected argument 'words'": [here, "words"],
    }
    for said, process in zip(mistakes, scripts([[GENERATE, *each] for each in mistakes.values()]), strict=True):
        assert process.returncode == 2, (process.args, process.stderr)
        (line,) = process.stderr.splitlines()
        assert line.startswith("error: ") and said in line
