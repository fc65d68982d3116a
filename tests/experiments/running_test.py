"""Who may write to a working directory, and what is left of it."""

import fcntl
import threading

import pytest

from experiments import running


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
