"""Training as a user starts it: what it writes, how it goes on, on how many devices, and what it refuses."""

import fcntl
import json
import re
import shutil
import textwrap

import jax
import numpy as np
import pytest

from experiments import loading
from transformer.training import metrics, phases, telemetry

TRAIN = "experiments.train"
TIMED = ("tokens_per_second", "utilisation")
KILLED = """
    import os, runpy, signal
    from transformer.training import metrics

    write = metrics.Writer.write

    def write_and_die(self, step, values):
        write(self, step, values)
        if step == 10:
            os.kill(os.getpid(), signal.{signal})

    metrics.Writer.write = write_and_die
    runpy.run_module("experiments.train", run_name="__main__", alter_sys=True)
"""


def lines(workdir):
    """The metrics that do not depend on the clock."""
    return [{name: value for name, value in row.items() if name not in TIMED} for row in metrics.read(workdir)]


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_run_writes_metrics_and_checkpoints_and_says_what_it_learnt(trained):
    workdir, process = trained
    rows = metrics.read(workdir)
    assert [row["step"] for row in rows] == [2, 3, 4, 6, 8, 9, 10, 12]
    assert [row["step"] for row in rows if "validation_loss" in row] == [6, 12]
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert {int(path.name) for path in (workdir / "checkpoints").iterdir()} == {9, 12}
    (said,) = re.findall(r"^validation: (\S+) bits per byte", process.stdout, re.MULTILINE)
    assert float(said) == pytest.approx(rows[-1]["validation_bits_per_byte"], abs=5e-5)
    assert process.stderr == ""
    for path in (workdir / "checkpoints", workdir / metrics.FILE):
        assert f" {path}\n" in process.stdout and path.exists()


def test_a_run_ends_with_three_continuations_and_the_ten_likeliest_tokens(trained):
    _, process = trained
    for number, prompt in enumerate(("the", "one", "two"), start=1):
        assert re.search(rf"^{number}\. {prompt}.", process.stdout, re.MULTILINE)
    assert "likeliest next tokens after 'two'" in process.stdout
    probabilities = [float(number) for number in re.findall(r"│ (0\.\d{4}) +│", process.stdout)]
    assert len(probabilities) == 10
    assert probabilities == sorted(probabilities, reverse=True)


def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(script, tiny, trained, tmp_path):
    killer, workdir = tmp_path / "killed.py", tmp_path / "run"
    killer.write_text(textwrap.dedent(KILLED).replace("{signal}", "SIGKILL"))
    arguments = (f"--config={tiny / 'recipe.py'}", f"--workdir={workdir}")
    assert script(str(killer), *arguments).returncode == -9
    assert metrics.read(workdir)[-1]["step"] == 10
    process = script(TRAIN, *arguments)
    assert process.returncode == 0, process.stderr
    assert re.search(rf"^resuming {workdir} at step [369]$", process.stdout, re.MULTILINE)
    assert lines(workdir) == lines(trained[0])
    assert process.stdout.split("validation: ")[1].split("checkpoint:")[0] in trained[1].stdout


def test_a_run_that_is_told_to_stop_saves_its_step_and_prints_any_prompt_when_it_has_gone_on(script, tiny, tmp_path):
    stopper, workdir = tmp_path / "stopped.py", tmp_path / "run"
    # The line of a step is written while a later one runs, a few at most.
    asked = "import os\nos.environ['TRANSFORMER_STOPPED_CODE'] = '79'\n"  # by a launcher
    program = textwrap.dedent(KILLED).replace("{signal}", "SIGTERM").replace("step == 10", "step == 6")
    stopper.write_text(asked + program)
    arguments = (f"--config={tiny / 'recipe.py'}", f"--workdir={workdir}", "--config.prompts=('[/b] :key:', '[i]')")
    process = script(str(stopper), *arguments)
    assert process.returncode == 79
    # On a busy machine the checkpoint library may warn before that of a save that took long.
    stopped = re.search(r"^stopped: at step (\d+); the same command goes on from there\n\Z", process.stderr, re.M)
    assert stopped and 7 <= int(stopped[1]) <= 9, process.stderr
    process = script(TRAIN, *arguments)
    assert process.returncode == 0, process.stderr
    assert f"resuming {workdir} at step {stopped[1]}" in process.stdout
    assert "\n1. [/b] :key:" in process.stdout and "after '[i]'" in process.stdout


def test_a_directory_that_another_run_holds_is_refused(script, tiny, tmp_path):
    with (tmp_path / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        process = script(TRAIN, f"--config={tiny / 'recipe.py'}", f"--workdir={tmp_path}")
    assert process.returncode == 2
    assert process.stderr == f"error: {tmp_path} is in use by another run: wait, or use a new --workdir\n"
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


@pytest.mark.slow
def test_jit_and_pmap_train_alike_and_resume_each_other(scripts, tiny, tmp_path):
    same = [
        "--config.training.accumulation=1",
        "--config.model.decoder.dropout=0.0",
        "--config.training.optimizer.schedule=constant",
        "--config.prompts=()",
        "--config.data.segments=True",
        "--config.training.head_metrics_every=5",
    ]

    def request(kind, name, steps):
        where = [f"--config={tiny / 'recipe.py'}", f"--workdir={tmp_path / name}", f"--parallel={kind}"]
        return [TRAIN, *where, *same, f"--config.training.steps={steps}"]

    order = [("jit", "a", 6), ("pmap", "b", 6), ("pmap", "a", 12), ("jit", "b", 12)]
    for process in scripts([request(*each) for each in order], devices=4):
        assert process.returncode == 0, process.stderr
        assert "on 4 cpu device(s)" in process.stdout
    first, second = lines(tmp_path / "a"), lines(tmp_path / "b")
    assert [row["step"] for row in first] == [2, 3, 4, 5, 6, 8, 9, 10, 12]
    heads = {f"heads/decoder/0/{head}/{score}" for head in (0, 1) for score in telemetry.SCORES}
    assert [row["step"] for row in first if heads <= row.keys()] == [5, 10]
    for row, other in zip(first, second, strict=True):
        assert row.keys() == other.keys()
        for name in row:  # sums over devices are taken in another order
            assert row[name] == pytest.approx(other[name], rel=1e-4), (row["step"], name)


def test_every_mistake_is_one_line_and_leaves_nothing_behind(scripts, tiny, tmp_path):
    recipe = f"--config={tiny / 'recipe.py'}"
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "short.txt").write_text("a few words")
    encoder = (
        "from transformer.models import *\ndef get_config(): ModelConfig(vocab=9, width=8, encoder=Stack(attention="
    )
    (tmp_path / "encoder.py").write_text(encoder + "Attention(windows=(4,))))")
    mistakes = {
        "config has no field 'modle': the nearest are model": [recipe, "--config.modle.width=3"],
        "seed=-1 cannot work": [recipe, "--config.seed=-1"],
        "config.training.optimizer has no field 'learning_rat'": [recipe, "--config.training.optimizer.learning_rat=1"],
        "it is a single value": [recipe, "--config.training.steps.most=3"],
        "--config.training.steps=many": [recipe, "--config.training.steps=many"],
        "--config.training.batch_size=2.5": [recipe, "--config.training.batch_size=2.5"],
        "--config.training.ema=high": [recipe, "--config.training.ema=high"],
        "decoder.attention.heads=3 cannot work: width=8": [recipe, "--config.model.decoder.attention.heads=3"],
        "encoder.attention.windows=(4,) cannot work": [f"--config={tmp_path / 'encoder.py'}"],
        "field \"encoder\" is None": [recipe, "--config.model.encoder.depth=3"],
        "absent.txt' does not exist": [recipe, "--config.data.path=absent.txt"],
        "empty.txt' holds no text": [recipe, f"--config.data.path={tmp_path / 'empty.txt'}"],
        "but one row needs 17 at data.length=16": [recipe, f"--config.data.path={tmp_path / 'short.txt'}"],
        "model.vocab=279 is too small for the tokenizer's 280": [recipe, "--config.model.vocab=279"],
        "model.vocab=256 is too small for the tokenizer's 257": [
            recipe, "--config.data.tokenizer.kind=bytes", "--config.model.vocab=256",
        ],
        "model.vocab=270 is too small for the tokenizer's 271": [
            recipe, "--config.data.tokenizer.kind=characters", "--config.model.vocab=270",
        ],
        "is 'É' (U+00C9), which is none of the 15": [
            recipe, "--config.data.tokenizer.kind=characters", "--config.data.tokenizer.fallback=False",
            "--config.prompts=('on', 'É')",
        ],
        "batch_size=6 must be a multiple of 4 devices x accumulation=2": [recipe, "--config.training.batch_size=6"],
        "write it with dashes, --config.seed=3": [recipe, "config.seed=3"],
        "--config is missing": [],
        "--config: [Errno 2] No such file or directory: 'absent.py'; give a recipe": ["--config=absent.py"],
        "directory: 'missing.py'": ["--config=missing.py", "--config.seed=3"],
        "setting 'huge' is unknown": ["--config=experiments/configs/shakespeare_char.py:huge"],
        "--parallel=threads": [recipe, "--parallel=threads"],
        "data.length=17 exceeds model.length=16": [recipe, "--config.data.length=17"],
    }  # fmt: skip
    requests = [[TRAIN, f"--workdir={tmp_path / 'runs' / 'mine'}", *arguments] for arguments in mistakes.values()]
    processes = scripts([*requests, [TRAIN, recipe], [TRAIN, recipe, "--workdir="]], devices=4)
    for said, process in zip([*mistakes, *["--workdir is missing"] * 2], processes, strict=True):
        assert process.returncode == 2, (process.args, process.stderr)
        (line,) = process.stderr.splitlines()
        assert line.startswith("error: ") and said in line
        assert not process.stdout
    assert not (tmp_path / "runs").exists()


def test_a_run_is_not_resumed_with_another_recipe_or_other_data(scripts, tiny, trained, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(trained[0], workdir)
    before = contents(workdir)
    (tmp_path / "other.txt").write_text((tiny / "text.txt").read_text() + " and one more")
    mistakes = {
        "training.optimizer.learning_rate was 0.01, now 0.02": ["--config.training.optimizer.learning_rate=0.02"],
        "model.decoder.attention.heads was 2, now 4": ["--config.model.decoder.attention.heads=4"],
        "model.width was 8, now 16": ["--config.model.width=16"],
        "seed was 0, now 1": ["--config.seed=1"],
        "data.content was": [f"--config.data.path={tmp_path / 'other.txt'}"],
        "go on on purpose with --accept=seed,model.decoder.dropout": [
            "--config.seed=1", "--config.model.decoder.dropout=0.2", "--accept=seed",
        ],
        "--accept=training.sead is no field: the nearest are": ["--accept=training.sead"],
        "step=4 is not in": ["--from_step=4"],
        "data.validation was 0.05, now 0.1": ["--config.data.validation=0.1"],
        "data.tokenizer was bpe": ["--config.data.tokenizer.vocab=290"],
        "data.length was 16, now 8": ["--config.data.length=8"],
    }  # fmt: skip
    start = [TRAIN, f"--config={tiny / 'recipe.py'}", f"--workdir={workdir}"]
    for said, process in zip(mistakes, scripts([[*start, *each] for each in mistakes.values()]), strict=True):
        assert process.returncode == 2, (process.args, process.stderr)
        (line,) = process.stderr.splitlines()
        assert line.startswith("error: ") and said in line
    assert contents(workdir) == before


def test_what_is_accepted_goes_on_and_what_is_gone_back_from_stays(scripts, tiny, trained, tmp_path):
    workdir, other = tmp_path / "run", tmp_path / "other.txt"
    shutil.copytree(trained[0], workdir)
    other.write_text((tiny / "text.txt").read_text() + " and one more")
    start = [TRAIN, f"--config={tiny / 'recipe.py'}", f"--workdir={workdir}"]
    changed = ["--config.seed=1", f"--config.data.path={other}", "--config.model.param_dtype=bfloat16"]
    accepted = "--accept=seed,data.path,data.content,model.param_dtype"
    back = [*start, *changed, accepted, "--from_step=9"]
    first, again = scripts([back, [*back, "--config.training.steps=14"]])
    assert first.returncode == 0, first.stderr
    assert f"resuming {workdir} at step 9" in first.stdout and "set aside the checkpoints of steps 12" in first.stdout
    assert again.returncode == 0, again.stderr  # the same command, as a launcher repeats it, does not go back again
    assert f"{workdir} went back to step 9 before" in again.stdout and "at step 12" in again.stdout
    folders = {path.name for path in (workdir / "checkpoints").iterdir()}
    assert "rolled-back-12" in folders and "14" in folders
    assert [row["step"] for row in metrics.read(workdir)] == [2, 3, 4, 6, 8, 9, 10, 12, 14]
    (before,) = workdir.glob("metrics-before-9.jsonl")
    assert before.read_bytes() == (trained[0] / metrics.FILE).read_bytes()
    assert (workdir / "data-before-1").is_dir()
    params = loading.load(workdir)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(params.params)} == {"float32"}  # the average
    assert params.tokenizer.fingerprint == loading.load(trained[0]).tokenizer.fingerprint


def test_a_run_ends_with_where_its_time_went(trained):
    workdir, process = trained
    (line,) = (workdir / phases.FILE).read_text().splitlines()
    report = json.loads(line)
    assert (report["first_step"], report["last_step"], report["steps"]) == (0, 12, 12)
    assert report["tokens"] == 12 * 8 * 16
    seconds = dict(report["seconds"])
    assert seconds.pop("all") == pytest.approx(sum(seconds.values()), abs=0.01)
    assert all(seconds[name] > 0 for name in ("restart", "compile", "step", "evaluation", "checkpoint"))
    assert report["useful"] == pytest.approx(seconds["step"] / sum(seconds.values()), abs=1e-3)
    assert "steps 0 to 12: 12 steps, 1,536 tokens" in process.stdout


def test_a_run_begins_with_a_pretrained_model_and_goes_on_without_it(scripts, tiny, pretrained, tmp_path):
    folder, workdir = tmp_path / "llama", tmp_path / "run"
    shutil.copytree(pretrained, folder)
    begin = [TRAIN, f"--config={tiny / 'recipe.py'}", f"--workdir={workdir}", f"--config.initial={folder}"]
    begin += ["--config.training.steps=3", "--config.training.ema=None", "--config.training.optimizer.warmup=0"]
    begin += ["--config.training.optimizer.learning_rate=1e-9"]
    first, measured = scripts([begin, ["experiments.evaluate", f"--workdir={workdir}"]], devices=2)
    assert first.returncode == 0, first.stderr
    assert measured.stdout.startswith("step 3: "), measured.stderr
    trained, source = loading.load(workdir), loading.load(folder)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-7), trained.params, source.params)
    assert trained.tokenizer.fingerprint == source.tokenizer.fingerprint
    assert (trained.model.config.width, trained.model.config.decoder.dropout) == (16, 0.1)  # the folder's, the recipe's

    other = [*begin[:3], f"--config.initial={pretrained}", *begin[4:]]
    (refused,) = scripts([other])
    assert refused.returncode == 2 and refused.stderr.startswith(
        f"error: {workdir} holds a run of another recipe: initial"
    )
    shutil.rmtree(folder)
    gone, more = scripts(
        [[*begin[:2], f"--workdir={tmp_path / 'new'}", *begin[3:]], [*begin, "--config.training.steps=6"]]
    )
    assert (gone.returncode, gone.stderr.count("\n")) == (2, 1) and "llama' does not exist" in gone.stderr
    assert not (tmp_path / "new").exists()
    assert more.returncode == 0, more.stderr
    assert f"resuming {workdir} at step 3" in more.stdout
    assert loading.load(workdir).step == 6
