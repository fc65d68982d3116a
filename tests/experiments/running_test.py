"""Who may write to a working directory, and what is left of it."""

import dataclasses
import fcntl
import threading

import pytest
from rich.console import Console

from experiments import running
from experiments.devices import Devices
from experiments.options import Options
from transformer import data, training


def test_what_another_run_made_meanwhile_stays(tmp_path):
    workdir = tmp_path / "runs" / "new"
    refused = pytest.raises(running.InUse, match="is in use by another run")
    # The first to hold it stands for another run, which began after this one had looked.
    with refused, running.removed_if_refused(workdir), running.locked(workdir):
        (workdir / "metrics").touch()
        with running.locked(workdir):
            pytest.fail("two runs hold one directory")
    assert (workdir / "metrics").exists()


def test_a_run_that_a_launcher_started_anew_waits_for_the_one_before(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TRANSFORMER_STOPPED_CODE", "79")
    with (tmp_path / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        threading.Timer(0.3, fcntl.flock, (held, fcntl.LOCK_UN)).start()
        with running.locked(tmp_path):
            assert f"{tmp_path} is in use by another run: waiting 100 s" in capsys.readouterr().err


def test_what_a_refused_run_made_goes(tmp_path):
    workdir = tmp_path / "runs" / "new"
    with pytest.raises(ValueError, match="no corpus"), running.removed_if_refused(workdir), running.locked(workdir):
        raise ValueError("no corpus")
    assert list(tmp_path.iterdir()) == []


def test_what_another_saved_there_meanwhile_stays(tmp_path):
    late = tmp_path / "new" / "checkpoints" / "208"
    with pytest.raises(ValueError, match="no intact"), running.removed_if_refused(tmp_path / "new"):
        late.mkdir(parents=True)
        raise ValueError("no intact checkpoint")
    assert late.is_dir()


def test_preparing_data_reads_no_checkpoint_which_takes_all_processes(made, monkeypatch):
    saved = training.load_recipe(made.workdir)
    monkeypatch.setattr(training, "load_recipe", lambda *_: pytest.fail("one process alone would wait for ever"))
    other = dataclasses.replace(made.experiment, seed=7, data=dataclasses.replace(made.experiment.data, validation=0.1))
    with pytest.raises(ValueError, match=r"validation.*seed was 0, now 7.*--accept=data.validation,seed"):
        running.prepare(other, made.workdir, Options(), None, saved)


def test_another_recipe_than_that_of_the_step_is_named_and_no_parameter_is_read(made, monkeypatch):
    load, asked = training.load_recipe, []

    def load_recipe(workdir, step="latest"):
        asked.append(step)
        return load(workdir, step)

    monkeypatch.setattr(training, "load_recipe", load_recipe)
    monkeypatch.setattr(training, "load_params", lambda *_: pytest.fail("parameters are read"))
    wide = dataclasses.replace(made.experiment, model=dataclasses.replace(made.experiment.model, width=16))
    fingerprint, console = data.load(made.workdir / "data").recipe, Console(quiet=True)
    run = running.Run(wide, fingerprint, made.workdir, console, Devices(), Options(from_step=1))
    with pytest.raises(ValueError, match=r"a run of another recipe: .*width was 8, now 16"):
        run.restore()
    assert asked == ["latest", 1]
