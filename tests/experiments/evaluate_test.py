"""The script's numbers against a sum over the validation stream, token by token, from the model's logits."""

import json
import math
import shutil
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from transformer import data, interop, models, text

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


def in_windows(params, tokenizer, text, length, stride):
    """Nats and tokens of a text in float64, each token from the latest window that it is new in."""
    stream = np.concatenate([[tokenizer.opening], tokenizer.encode(text)])
    config, nats, done = params[0].config, [], 1
    forward = jax.jit(params[0].apply)
    for start in range(0, len(stream), stride):
        row = stream[start : start + length + 1]
        inputs = np.zeros(length, np.int32)
        inputs[: len(row) - 1] = row[:-1]
        logits = np.asarray(forward({"params": params[1]}, jnp.asarray(inputs[None]))[0], np.float64)
        assert logits.shape[-1] == config.vocab
        for place in range(len(row) - 1):
            if start + place + 1 >= done:
                highest = logits[place].max()
                nats.append(highest + math.log(np.exp(logits[place] - highest).sum()) - logits[place][row[place + 1]])
        done = start + len(row)
        if done >= len(stream):
            break
    return math.fsum(nats), len(nats)


def test_any_text_is_measured_in_sliding_windows(scripts, made, pretrained, tmp_path):
    (tmp_path / "a.txt").write_text(made.text[:400] + " naïve\n")
    text = (tmp_path / "a.txt").read_text()
    given = [f"--text={tmp_path / 'a.txt'}", "--json"]
    run, folder, whole, spoken, *halved = scripts(
        [
            [EVALUATE, f"--workdir={made.workdir}", *given, "--length=16", "--stride=4"],
            [EVALUATE, f"--workdir={pretrained}", *given, "--length=24", "--stride=24", "--batch_size=3"],
            [EVALUATE, f"--workdir={pretrained}", *given],
            [EVALUATE, f"--workdir={pretrained}", given[0]],
            *([EVALUATE, f"--workdir={source}", *given, "--dtype=bfloat16"] for source in (made.workdir, pretrained)),
        ]
    )
    pair = (models.Transformer(made.experiment.model), made.params[3])
    tokenizer = data.load(made.workdir / "data").tokenizer
    loaded = interop.load(pretrained)
    for process, sizes, model, table in (
        (run, (16, 4), pair, tokenizer),
        (folder, (24, 24), loaded[:2], loaded[2]),
        (whole, (32, 16), loaded[:2], loaded[2]),
    ):
        assert process.returncode == 0, process.stderr
        results, (nats, tokens) = json.loads(process.stdout), in_windows(model, table, text, *sizes)
        assert (results["length"], results["stride"], results["tokens"]) == (*sizes, tokens)
        assert results["loss"] == pytest.approx(nats / tokens, rel=1e-5)
        assert results["bits_per_byte"] == pytest.approx(nats / math.log(2) / len(text.encode()), rel=1e-5)
    rounded = json.loads(halved[1].stdout)["loss"]
    assert rounded == pytest.approx(results["loss"], rel=0.02) and rounded != results["loss"]
    assert json.loads(halved[0].stdout)["tokens"] == json.loads(run.stdout)["tokens"]
    assert spoken.stdout.startswith(f"{pretrained}: {results['bits_per_byte']:.4f} bits per byte")
    assert spoken.stdout.endswith(f"over {tokens} tokens, in windows of 32 every 16\n")


def test_what_is_not_there_is_one_line(scripts, made, pretrained, tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"na\xefve")
    (tmp_path / "some.txt").write_text("one two three")
    (tmp_path / "empty").mkdir()
    mistakes = {
        "absent' does not exist, and is no name of a model": [f"--workdir={tmp_path / 'absent'}"],
        "empty holds neither checkpoints nor a config.json": [f"--workdir={tmp_path / 'empty'}"],
        "--workdir is missing": [],
        "choose one of [3, 2, 1], 'latest' or 'best'": [f"--workdir={made.workdir}", "--step=7"],
        "--step=newest is not a checkpoint": [f"--workdir={made.workdir}", "--step=newest"],
        "--batch_size=0": [f"--workdir={made.workdir}", "--batch_size=0"],
        "without a validation split: give a file with --text": [f"--workdir={pretrained}"],
        "--step=best chooses among checkpoints": [f"--workdir={pretrained}", "--step=best"],
        "--length and --stride are of the windows of --text": [f"--workdir={made.workdir}", "--stride=3"],
        "--stride=5 exceeds the windows' length=4": [
            f"--workdir={pretrained}",
            f"--text={tmp_path / 'some.txt'}",
            "--length=4",
            "--stride=5",
        ],
        "--stride=33 exceeds the windows' length=32": [
            f"--workdir={pretrained}",
            f"--text={tmp_path / 'some.txt'}",
            "--stride=33",
        ],
        "absent.txt cannot be read: No such file": [f"--workdir={pretrained}", f"--text={tmp_path / 'absent.txt'}"],
        "latin.txt is not UTF-8 (byte 2)": [f"--workdir={pretrained}", f"--text={tmp_path / 'latin.txt'}"],
    }
    for said, process in zip(mistakes, scripts([[EVALUATE, *each] for each in mistakes.values()]), strict=True):
        assert (process.returncode, process.stdout) == (2, ""), (process.args, process.stderr)
        (line,) = process.stderr.splitlines()
        assert line.startswith("error: ") and said in line
    assert not (tmp_path / "absent").exists() and not list((tmp_path / "empty").iterdir())


def test_a_tokenizer_that_is_too_large_for_its_model_is_refused(scripts, pretrained, tmp_path):
    folder = tmp_path / "folder"
    shutil.copytree(pretrained, folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    text.BPE.train([f"word{number} " for number in range(400)], 400).save(folder)
    (tmp_path / "a.txt").write_text("word1 word39 word399")
    for program, *arguments in (
        (EVALUATE, f"--text={tmp_path / 'a.txt'}"),
        ("experiments.generate", "--prompt=word1 word39 word399"),
    ):
        (process,) = scripts([[program, f"--workdir={folder}", *arguments]])
        assert (process.returncode, process.stdout, process.stderr.count("\n")) == (2, "", 1)
        assert "entries for a model of 280" in process.stderr


def test_windows_and_batches_are_no_larger_than_the_text(scripts, pretrained, tmp_path):
    (tmp_path / "a.txt").write_text("one two three " * 5)
    (tmp_path / "empty.txt").write_text("")
    start = [EVALUATE, f"--workdir={pretrained}", "--json"]
    huge = ["--length=1000000000000", "--stride=999999999999", "--batch_size=65536"]
    whole, empty = scripts(
        [[*start, f"--text={tmp_path / 'a.txt'}", *huge], [*start, f"--text={tmp_path / 'empty.txt'}"]]
    )
    assert whole.returncode == 0, whole.stderr
    results = json.loads(whole.stdout)
    assert results["length"] == results["stride"] == results["tokens"]
    assert (empty.returncode, empty.stderr.count("\n")) == (2, 1) and "empty.txt is empty" in empty.stderr


@pytest.fixture(scope="module")
def evaluate(imported):
    """The script's functions, with flags that say nothing."""
    module = imported(EVALUATE)
    flags.FLAGS([EVALUATE])
    return module


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_a_mistake(evaluate, monkeypatch, loss):
    monkeypatch.setattr(evaluate.training, "evaluate", lambda *_: {"loss": loss, "perplexity": math.inf, "tokens": 9.0})
    trained = types.SimpleNamespace(origin="step 3", experiment=None, model=None, params=None)
    with pytest.raises(ValueError, match=f"step 3 has a loss of {loss}: choose parameters that work"):
        evaluate._measure(trained, [], None)


def test_devices_of_a_mesh_have_the_rows_that_fit_one_each(evaluate, monkeypatch):
    trained = types.SimpleNamespace(model=types.SimpleNamespace(config=types.SimpleNamespace(vocab=50_257)))
    monkeypatch.setattr(evaluate.jax, "device_count", lambda: 8)
    assert evaluate._rows(trained, 1024) == 1 and evaluate._rows(trained, 100) == 13
    with flagsaver.flagsaver(mesh="data=2,fsdp=2,tensor=2"):
        assert evaluate._rows(trained, 1024) == 4 and evaluate._rows(trained, 100) == 52
        assert evaluate._rows(trained, 100, most=9) == 12
    message = r"--batch_size=6 rows cannot be shared among 4 .* the nearest above is 8"
    with flagsaver.flagsaver(mesh="data=2,fsdp=2,tensor=2", batch_size=6), pytest.raises(ValueError, match=message):
        evaluate._rows(trained, 1024)


def test_held_out_pairs_say_how_they_are_scored_and_a_search_is_checked_first(evaluate, monkeypatch):
    stack = models.Stack(depth=1)
    model = types.SimpleNamespace(config=models.ModelConfig(vocab=8, width=64, encoder=stack, decoder=stack))

    def trained(path, validation):
        wanted = data.Data(path, data.Objective("pairs"), pairs=data.Pairs(validation=validation))
        return types.SimpleNamespace(experiment=types.SimpleNamespace(data=wanted), model=model, start=0, origin="it")

    assert evaluate._path(trained("task:reverse", None)) == "task:reverse"
    assert evaluate._path(trained("task:reverse", "v.en,v.de")) == "v.en,v.de"
    assert evaluate._path(trained("t.en,t.de", "task:reverse")) == "task:reverse"
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    evaluate._check_search(trained("t.en,t.de", "task:reverse"))
    with pytest.raises(ValueError, match="sacrebleu is not installed"):
        evaluate._check_search(trained("task:reverse", "v.en,v.de"))
    monkeypatch.setattr(flags.FLAGS, "ratio", -1.0)
    with pytest.raises(ValueError, match=r"ratio=-1\.0: it must be a positive number"):
        evaluate._check_search(trained("t.en,t.de", "task:reverse"))
