"""That the program runs and reports what it says; its numbers mean nothing at these sizes."""

import json
import re

import pytest

from experiments.benchmarks import run
from experiments.benchmarks.contest import Settings

BENCHMARK = "experiments.benchmarks.run"


def test_a_table_and_json_come_from_a_tiny_run(script, tmp_path):
    output = tmp_path / "numbers.json"
    flags = ("--tiny", "--only=loss", "--precisions=float32", "--repeats=1", f"--results={output}")
    process = script(BENCHMARK, *flags)
    assert process.returncode == 0, process.stdout + process.stderr
    content = json.loads(output.read_text())
    rows = {(row["case"], row["program"]): row for row in content["rows"]}
    for program in ("ours", "ours, chunked"):
        row = rows["loss", program]
        assert row["precision"] == "float32" and len(row["seconds"]) == 1 and row["memory"] >= 0
        assert row["rate"] == pytest.approx(16 / row["median"])  # positions of the tiny size
        assert row["ceiling"] == "products" and row["share"] > 0
        assert re.search(rf"│ {program} ", process.stdout)
    if ("loss", "torch") in rows:
        ours, theirs = rows["loss", "ours"], rows["loss", "torch"]
        assert ours["against"] == "torch" and ours["ratio"] == theirs["median"] / ours["median"]
    else:
        assert "torch: not installed, left out: pip install 'transformer-research[oracle]'" in content["left_out"]
    assert rows["ceiling: product", "jax"]["unit"] == "FLOP" and rows["ceiling: read", "jax"]["unit"] == "B"
    assert content["repeats"] == 1 and "jax" in content["versions"] and content["device"] == "cpu"
    assert content["command"].startswith("python -m experiments.benchmarks.run --tiny --only=loss ")
    assert re.fullmatch(r"[0-9a-f]{12}(-dirty)?|unknown", content["commit"])
    assert " cores, " in content["machine"]


@pytest.fixture(scope="module")
def mistakes(scripts, tmp_path_factory):
    """What each of these ends with."""
    lines = {
        "typo": ["--only=train-cahr"],
        "match": ["--only=loss,decode", "--match=batch 7"],
        "program": ["--only=loss", "--programs=tarch"],
        "expression": ["--only=loss", "--programs=("],
        "precision": ["--only=loss", "--precisions=float8"],
        "output": ["--only=loss", "--results=/absent/folder/x.json"],
        "folder": ["--only=loss", f"--results={tmp_path_factory.mktemp('folder')}"],
        "gpu": ["--device=gpu", "--only=loss", "--tiny"],
        "list": ["--list"],
    }
    return dict(zip(lines, scripts([[BENCHMARK, *line] for line in lines.values()]), strict=True))


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        ("typo", ("--only='train-cahr'", "train-char")),
        ("match", ("--match='batch 7'", "'loss', 'decode, batch 1'")),
        ("program", ("--programs='tarch'", "'ours', 'ours, chunked', 'torch'")),
        ("expression", ("--programs='('", "unterminated")),
        ("precision", ("float8", "float32, bfloat16")),
        ("output", ("--results='/absent/folder/x.json'",)),
        ("folder", ("--results=", "is a folder: name a file")),
        ("gpu", ("--device='gpu'", "--device=cpu")),
    ],
)
def test_a_mistake_is_one_line(mistakes, mistake, words):
    process = mistakes[mistake]
    assert process.returncode == 2 and not process.stdout
    assert process.stderr.startswith("error: ") and process.stderr.count("\n") == 1
    assert all(word in process.stderr for word in words), process.stderr


def test_cases_and_programs_are_chosen_by_name():
    settings = Settings("cpu", tiny=False, precisions=("float32",))
    cases = run._cases(["decode", "prefill"], "batch 8", "ours.*", settings)
    assert [case.name for case in cases] == ["decode, batch 8", "prefill, batch 8"]
    assert [program.name for case in cases for program in case.programs] == ["ours", "ours"]


def test_every_workload_is_listed(mistakes):
    assert [line.split()[0] for line in mistakes["list"].stdout.splitlines()] == list(run.WORKLOADS)


@pytest.mark.parametrize("device", ["cpu", "gpu"])
@pytest.mark.parametrize("name", run.WORKLOADS)
def test_every_case_has_ours_and_is_told_apart(name, device):
    cases = run.WORKLOADS[name](Settings(device, tiny=False))
    assert len({(case.name, case.precision) for case in cases}) == len(cases)
    for case in cases:
        names = [program.name for program in case.programs]
        assert any(program.ours for program in case.programs) and len(set(names)) == len(names)
        assert case.amount > 0


@pytest.mark.slow
def test_everything_runs(script, tmp_path):  # ten minutes on two cores
    process = script(BENCHMARK, "--tiny", "--repeats=1", f"--results={tmp_path / 'numbers.json'}")
    assert process.returncode == 0, process.stdout + process.stderr
    assert "failed" not in process.stdout
