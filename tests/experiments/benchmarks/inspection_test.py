"""That the benchmark runs and compares what it says; its numbers mean nothing at this size."""

import re

import pytest

BENCHMARK = "experiments.benchmarks.inspection"


@pytest.mark.slow  # half a minute
def test_every_comparison_is_made(script, tiny):
    sizes = ("--depth=2", "--width=8", "--heads=2", "--length=8", "--repeats=2", "--every=4")
    process = script(BENCHMARK, f"--recipe={tiny / 'recipe.py'}", *sizes)
    assert process.returncode == 0, process.stderr
    assert "unused taps: the same program as without taps\n" in process.stdout
    timed = re.findall(r"^(.+?) +([\d.]+) ms \(([\d.]+) to ([\d.]+)\), [\d.]+ x$", process.stdout, re.MULTILINE)
    assert [name for name, *_ in timed] == ["training step", "heads"]
    assert all(0 < float(low) <= float(median) <= float(high) for _, median, low, high in timed)
    (share,) = re.findall(r"^heads measured every 4 steps: ([\d.]+)% of", process.stdout, re.MULTILINE)
    step, heads = (float(median) for _, median, *_ in timed[-2:])
    assert abs(float(share) / 100 - heads / step / 4) < 0.1 * heads / step  # what is printed is rounded


def test_a_missing_recipe_is_one_line(script):
    process = script(BENCHMARK, "--recipe=absent.py", "--depth=1", "--width=8", "--heads=2", "--length=8")
    assert process.returncode == 2
    assert process.stderr.startswith("error: ") and process.stderr.count("\n") == 1 and "absent.py" in process.stderr
