"""Who may write to a working directory, and what is left of it."""

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
