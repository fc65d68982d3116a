"""The script's numbers against a sum over the validation stream, token by token, from the model's logits."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer import data, models

EVALUATE = "experiments.evaluate"


def by_hand(made, step):
    """Nats, tokens and bytes of the validation side, in float64, each token from the row of 16 that it falls in."""
    text = made.text[int(len(made.text) * 0.95) :]
    tokenizer = data.load(made.workdir / "data").tokenizer
    stream = np.concatenate([[tokenizer.end], tokenizer.encode(text)])
    forward, nats = jax.jit(models.Transformer(made.experiment.model).apply), []
    for first in range(0, len(stream) - 1, 16):
        row = stream[first : first + 17]
        inputs = np.zeros(16, np.int32)
        inputs[: len(row) - 1] = row[:-1]
        logits = np.asarray(forward({"params": made.params[step]}, jnp.asarray(inputs[None]))[0], np.float64)
        for scores, target in zip(logits, row[1:], strict=False):
            highest = scores.max()
            nats.append(highest + math.log(np.exp(scores - highest).sum()) - scores[target])
    return math.fsum(nats), len(nats), len(text.encode())


def test_a_run_is_measured_on_its_whole_validation_side(scripts, made, tmp_path):
    start = [EVALUATE, f"--workdir={made.workdir}"]
    asked = (["--json"], ["--json", "--step=best", "--batch_size=3"], ["--json", "--step=1"], ["--step=1"])
    *measured, spoken = scripts([[*start, *each] for each in asked])
    for process, step in zip(measured, (3, 2, 1), strict=True):
        assert process.returncode == 0, process.stderr
        results, (nats, tokens, size) = json.loads(process.stdout), by_hand(made, step)
        assert results["step"] == step and results["tokens"] == tokens
        assert results["loss"] == pytest.approx(nats / tokens, rel=1e-5)  # float32 logits
        assert results["perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-4)
        assert results["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    assert spoken.stdout == (
        f"step 1: {results['bits_per_byte']:.4f} bits per byte, loss {results['loss']:.4f} nats per token, "
        f"perplexity {results['perplexity']:.2f}, over {tokens} tokens\n"
    )
    assert spoken.stderr == ""


def test_the_end_of_training_and_the_script_agree(scripts, trained):
    workdir, process = trained
    (again,) = scripts([[EVALUATE, f"--workdir={workdir}", "--batch_size=8"]])
    assert again.returncode == 0, again.stderr
    assert (
        again.stdout.split(" bits per byte")[0]
        == "step 12: " + process.stdout.split("validation: ")[1].split(" bits")[0]
    )


def test_what_is_not_there_is_one_line(scripts, made, tmp_path):
    (tmp_path / "empty").mkdir()
    mistakes = {
        "absent holds no checkpoints: train there first": [f"--workdir={tmp_path / 'absent'}"],
        "empty holds no checkpoints: train there first": [f"--workdir={tmp_path / 'empty'}"],
        "--workdir is missing": [],
        "choose one of [3, 2, 1], 'latest' or 'best'": [f"--workdir={made.workdir}", "--step=7"],
        "--step=newest is not a checkpoint": [f"--workdir={made.workdir}", "--step=newest"],
        "--batch_size=0": [f"--workdir={made.workdir}", "--batch_size=0"],
    }
    for said, process in zip(mistakes, scripts([[EVALUATE, *each] for each in mistakes.values()]), strict=True):
        assert (process.returncode, process.stdout) == (2, ""), (process.args, process.stderr)
        (line,) = process.stderr.splitlines()
        assert line.startswith("error: ") and said in line
    assert not (tmp_path / "absent").exists() and not list((tmp_path / "empty").iterdir())
