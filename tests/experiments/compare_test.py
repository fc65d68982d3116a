"""Comparing runs whose numbers are known; statistics against published tables and formulas."""

import json
import math

import numpy as np
import pytest

from transformer import training
from transformer.training import metrics

COMPARE = "experiments.compare"
LOSSES = {  # by learning rate and seed
    0.001: {0: 3.0, 1: 3.2, 2: 3.1},
    0.002: {0: 2.9, 1: 3.11, 2: 2.99},  # lower by 0.1, 0.09, 0.11
    0.004: {0: 3.3, 1: 2.9, 2: 3.1},  # higher by 0.3, lower by 0.3, the same
}


@pytest.fixture(scope="module")
def compare(imported):
    return imported(COMPARE)


def write(folder, rate, seed, losses):
    """A run that measured `losses` at its steps."""
    config = {"seed": seed, "training": {"optimizer": {"learning_rate": rate, "warmup": 0}}, "prompts": []}
    state = training.State(step=np.int32(1), params={"w": np.zeros(1)}, opt_state={}, ema=None, health={})
    with training.Checkpoints(folder) as checkpoints:
        checkpoints.save(state, {"config": config, "data": {}})
    with metrics.Writer(folder) as writer:
        for step, loss in losses.items():
            writer.write(step, {"loss": loss + 1.0, **({"validation_loss": loss} if step % 10 == 0 else {})})


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    for rate, seeds in LOSSES.items():
        for seed, loss in seeds.items():
            later = {25: 9.0} if rate == 0.001 else {25: 9.0, 30: 1.0}  # the baseline has not come so far
            write(folder / f"learning_rate={rate},seed={seed}", rate, seed, {10: 5.0, 20: loss, **later})
    return folder


def test_an_interval_is_that_of_the_table_of_student(compare):
    # Student's t for 95%, two-sided: 12.706 with 1 degree of freedom, 4.303 with 2, 2.262 with 9.
    for count, quantile in ((2, 12.706), (3, 4.303), (10, 2.262)):
        values = np.arange(count, dtype=float)
        found = compare.interval(values)
        half = quantile * math.sqrt(sum((values - values.mean()) ** 2) / (count - 1)) / math.sqrt(count)
        assert (found.count, found.mean) == (count, values.mean())
        assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), rel=1e-3)
    assert compare.interval([4.0])[:2] == (1, 4.0) and math.isnan(compare.interval([4.0]).low)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([], "no seed in common"),
        ([0.5], "+0.5 in one pair of runs, which says nothing about noise"),
        ([-0.1, 0.1], "within noise"),
        ([0.0, 0.0], "+0 [+0, +0] over 2 pairs: within noise"),
        ([-0.1, -0.11, -0.09], "lower than the baseline, beyond noise"),
        ([0.1, 0.11, 0.09], "higher than the baseline, beyond noise"),
    ],
)
def test_a_verdict_says_what_the_numbers_do(compare, values, said):
    assert said in compare.verdict(compare.interval(values))


def test_a_sweep_is_grouped_paired_by_seed_and_judged(scripts, sweep, tmp_path):
    plot, one = tmp_path / "plot.png", sweep / "learning_rate=0.004,seed=1"
    report, numbers, other = scripts(
        [
            [COMPARE, str(sweep), f"--plot={plot}"],
            [COMPARE, "--json", str(sweep)],
            [COMPARE, str(sweep), f"--baseline={one}", "--metric=loss"],
        ]
    )
    assert report.returncode == 0, report.stderr
    assert "validation_loss at step 20" in report.stdout
    lines = report.stdout.splitlines()
    # The mean of 0.1, 0.09 and 0.11, whose deviation is 0.01: 4.303 * 0.01 / sqrt(3) = 0.02484.
    assert "learning_rate=0.002: -0.1 [-0.1248, -0.07516] over 3 pairs: lower than the baseline, beyond noise" in lines
    assert any(
        line.startswith("learning_rate=0.004: ") and line.endswith("over 3 pairs: within noise") for line in lines
    )
    assert plot.read_bytes().startswith(b"\x89PNG")
    read = json.loads(numbers.stdout)
    assert (read["metric"], read["step"]) == ("validation_loss", 20)
    assert [group["values"] for group in read["groups"]] == [
        {str(seed): loss for seed, loss in seeds.items()} for seeds in LOSSES.values()
    ]
    assert read["groups"][0]["difference"] is None
    assert "loss at step 30" in other.stdout and "learning_rate=0.004 (baseline)" in other.stdout
    assert "learning_rate=0.001: left out" in other.stdout.splitlines()
    assert other.stderr.count("not measured at step 30 (last at 25)") == 3


def test_runs_that_ended_early_diverged_or_measured_nothing_are_left_out_by_name(scripts, tmp_path):
    for seed in range(3):
        write(tmp_path / f"rate=1,seed={seed}", 1.0, seed, {10: 5.0, 100: 2.0 + seed})
        later = {20: math.inf, 100: math.nan} if seed == 1 else {100: 3.0 + seed}
        write(tmp_path / f"rate=2,seed={seed}", 2.0, seed, {10: 4.0, **(later if seed else {})})
    (tmp_path / "rate=3,seed=0").mkdir()
    (tmp_path / "plots").mkdir()
    report, numbers = scripts([[COMPARE, str(tmp_path)], [COMPARE, "--json", str(tmp_path)]])
    assert report.returncode == 0, report.stderr
    read = json.loads(numbers.stdout)
    assert read["step"] == 100 and [group["values"] for group in read["groups"]] == [
        {"0": 2.0, "1": 3.0, "2": 4.0},
        {"2": 5.0},
    ]
    said = {path.rsplit("/", 1)[1]: why for path, why in read["left_out"].items()}
    assert said.pop("rate=3,seed=0").startswith("nothing measured (")
    assert said == {"rate=2,seed=0": "not measured at step 100 (last at 10)", "rate=2,seed=1": "diverged"}
    assert report.stderr.count("left out: ") == 3
    for words in ("1 not measured at step 100 (last at 10), 1 diverged", "rate=3,seed=0", "nothing measured"):
        assert words in report.stdout
    assert "learning_rate=2.0: +1 in one pair of runs" in report.stdout


def test_mistakes_are_one_line(scripts, sweep, tmp_path):
    run = str(next(sweep.iterdir()))
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / metrics.FILE).write_text('{"step": 1, "validation_loss": 1.0}\n')
    write(tmp_path / "early", 0.001, 0, {5: 1.0, 7: 1.0})
    twice = [str(sweep / "learning_rate=0.001,seed=0"), str(tmp_path / "copy")]
    write(tmp_path / "copy", 0.001, 0, {20: 1.0})
    mistakes = {
        "no runs are given": [],
        "holds no metrics.jsonl": [str(tmp_path / "nowhere")],
        "has measured no 'accuracy': choose --metric from loss, validation_loss": [run, "--metric=accuracy"],
        "holds no checkpoint": [str(tmp_path / "bare")],
        "has measured no 'validation_loss': choose --metric from loss": [str(tmp_path / "early")],
        "there is no step at which most runs measured 'loss'": [run, str(tmp_path / "early"), "--metric=loss"],
        "are of one recipe and one seed": twice,
        "is none of the runs that are compared": [run, f"--baseline={tmp_path}"],
        "--plot=plot.xyz has no ending of a picture": [run, "--plot=plot.xyz"],
    }
    for said, process in zip(mistakes, scripts([[COMPARE, *each] for each in mistakes.values()]), strict=True):
        assert process.returncode == 2, (process.args, process.stderr)
        (line,) = process.stderr.splitlines()
        assert line.startswith("error: ") and said in line
