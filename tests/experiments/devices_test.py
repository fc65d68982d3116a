"""Scripts on a mesh of four devices."""

import json
import shutil
import sys

import pytest


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def meshes(scripts, tiny, tmp_path_factory):
    """Runs of the tiny recipe, without dropout: on a mesh, on devices that share rows alone, and on both in turn."""
    folder = tmp_path_factory.mktemp("meshes")
    recipe = [
        f"--config={tiny / 'recipe.py'}",
        "--config.model.decoder.dropout=0.0",
        "--config.training.accumulation=1",
    ]
    cut = "--mesh=fsdp=2,tensor=2"

    def train(name, *more):
        return ["experiments.train", *recipe, f"--workdir={folder / name}", *more]

    half = "--config.training.steps=6"
    requests = [
        train("cut", cut),
        train("shared"),
        train("turns", cut, half, "--config.training.optimizer.schedule=constant"),
        train("turns", "--mesh=data=4", "--config.training.optimizer.schedule=constant"),
        train("whole", "--config.training.optimizer.schedule=constant"),
        ["experiments.evaluate", f"--workdir={folder / 'cut'}", "--mesh=data=2,tensor=2", "--json"],
        ["experiments.generate", f"--workdir={folder / 'cut'}", "--mesh=tensor=2,data=2", "--prompt=the", "--greedy"],
        ["experiments.generate", f"--workdir={folder / 'cut'}", "--prompt=the", "--greedy"],
    ]
    done = scripts(requests, devices=4)
    for process in done:
        assert process.returncode == 0, process.stderr
    return folder, done


@pytest.mark.slow
def test_a_mesh_changes_no_loss(meshes):
    folder, _ = meshes
    cut, shared = rows(folder / "cut"), rows(folder / "shared")
    assert [row["loss"] for row in cut] == pytest.approx([row["loss"] for row in shared], rel=1e-4)
    assert cut[-1]["validation_loss"] == pytest.approx(shared[-1]["validation_loss"], rel=1e-4)


@pytest.mark.slow
def test_a_run_goes_on_with_another_mesh(meshes):
    folder, _ = meshes
    turns, whole = rows(folder / "turns"), rows(folder / "whole")
    assert [row["step"] for row in turns] == [row["step"] for row in whole]
    assert [row["loss"] for row in turns] == pytest.approx([row["loss"] for row in whole], rel=1e-4)


@pytest.mark.slow
def test_what_was_trained_is_measured_and_writes_on_a_mesh(meshes):
    folder, (*_, evaluated, on_mesh, alone) = meshes
    assert json.loads(evaluated.stdout)["loss"] == pytest.approx(rows(folder / "cut")[-1]["validation_loss"], rel=1e-5)
    assert on_mesh.stdout == alone.stdout and alone.stdout.startswith("the")


def test_where_arrays_lie_is_explained_and_mistakes_are_one_line(scripts, tiny, tmp_path):
    train = ["experiments.train", f"--config={tiny / 'recipe.py'}", f"--workdir={tmp_path / 'run'}"]
    mistakes = {
        "--mesh=rows=4": "'rows=4' cannot work",
        "--mesh=tensor=4": "cannot be shared among 4 devices (tensor=4)",
        "--sharding=*/upp/kernel=-,tensor": "names no parameter",
        "--sharding=nonsense": "'nonsense' cannot work: write PATTERN=AXES",
        "--config.training.batch_size=6": "batch_size=6 must be a multiple of 2 devices x accumulation=2",
    }
    explain = [*train, "--mesh=fsdp=2,tensor=2", "--explain-sharding"]
    requests = [explain, [*explain, "--parallel=pmap"], *([*explain, mistake] for mistake in mistakes)]
    explained, mapped, *refused = scripts(requests, devices=4)
    assert explained.returncode == 0, explained.stderr
    assert "params/decoder/blocks/mlp/up/kernel" in explained.stdout and "-, fsdp, tensor" in explained.stdout
    assert "on each device, " in explained.stdout and not (tmp_path / "run").exists()
    assert mapped.returncode == 2 and "pmap' has only data parallelism" in mapped.stderr
    for process, said in zip(refused, mistakes.values(), strict=True):
        assert process.returncode == 2 and said in process.stderr and len(process.stderr.splitlines()) == 1
    shutil.rmtree(tmp_path)


@pytest.mark.slow
def test_a_run_goes_on_with_other_processes_and_another_mesh(script, tiny, tmp_path):
    train = ["experiments.train", f"--config={tiny / 'recipe.py'}", "--config.model.decoder.dropout=0.0"]
    train += ["--config.training.accumulation=1", "--config.training.optimizer.schedule=constant"]

    def launch(mesh, steps):
        command = [sys.executable, "-m", *train, f"--workdir={tmp_path / 'turns'}", mesh]
        return script(
            "launch.local", "--processes=2", "--devices=2", "--", *command, f"--config.training.steps={steps}"
        )

    parts = [launch("--mesh=fsdp=2,tensor=2", 6), launch("--mesh=data=2,fsdp=2", 9)]
    parts.append(script(*train, f"--workdir={tmp_path / 'turns'}"))
    whole = script(*train, f"--workdir={tmp_path / 'whole'}")
    for process in (*parts, whole):
        assert process.returncode == 0, process.stderr
    turns, whole = rows(tmp_path / "turns"), rows(tmp_path / "whole")
    assert [row["step"] for row in turns] == [row["step"] for row in whole]
    assert [row["loss"] for row in turns] == pytest.approx([row["loss"] for row in whole], rel=1e-4)
