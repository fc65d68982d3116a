"""Every file of a checkpoint, damaged in every way."""

import itertools
import shutil
import subprocess
import time

import jax
import numpy as np
import optax
import pytest

from transformer.training import Checkpoints, create, exits, integrity
from transformer.training.checkpoints import FOLDER
from transformer.training.managers import PARTS, RECORDS

# Files that Orbax gives up leave callbacks behind, for an event loop that is gone.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

RECIPE = {"config": {"seed": 1}}


def state(step):
    random = np.random.default_rng(step)
    params = {"blocks": {"kernel": random.normal(size=(2, 300)).astype(np.float32)}, "bias": np.ones(3, np.float32)}
    made = create(params, optax.adam(0.1), 0.9)
    return jax.tree.map(np.array, made.replace(step=np.int32(step)))


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    """A working directory with checkpoints of steps 3 and 6."""
    workdir = tmp_path_factory.mktemp("intact")
    with Checkpoints(workdir) as checkpoints:
        for step in (3, 6):
            checkpoints.save(state(step), RECIPE)
    return workdir


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def half(path):
    """As long as it was, but the second half was never written."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def other(path):
    """What another version of the program might have written there."""
    path.write_bytes(b"{}")


HARMS = (flip, half, cut, other, lambda path: path.unlink())
NAMES = ("one bit flipped", "half written", "truncated", "another version's", "missing")


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_every_file_that_is_read_is_compared_whatever_happened_to_it(intact, tmp_path):
    folder = tmp_path / "6"
    shutil.copytree(intact / FOLDER / "6", folder)
    for name, harm in itertools.product(files(folder), HARMS):
        before = (folder / name).read_bytes()
        harm(folder / name)
        harmed = not (folder / name).exists() or (folder / name).read_bytes() != before
        if name in integrity.UNLISTED[:2] or not harmed:  # nobody reads it; or half of it was nothing but zeros
            integrity.verify(folder, PARTS + RECORDS)
        else:
            with pytest.raises(integrity.Damaged, match=f"^{name} "):
                integrity.verify(folder, PARTS + RECORDS)
        (folder / name).write_bytes(before)


def fallen_back(intact, workdir, name, harm):
    """Restores after a file of the newest checkpoint was harmed; which step, and whether anything is lost."""
    shutil.copytree(intact, workdir)
    harm(workdir / FOLDER / "6" / name)
    with Checkpoints(workdir, keep=9) as checkpoints:
        restored = checkpoints.restore(state(3))
        jax.tree.map(np.testing.assert_array_equal, restored.state, state(restored.step))
        checkpoints.save(state(9), RECIPE)
    assert len(list((workdir / FOLDER).iterdir())) == 3
    return restored.step


SOME = ("params/manifest.ocdbt", "recipe/metadata", "manifest.json", "commit_success.txt")


@pytest.mark.parametrize("name", [*SOME, pytest.param(None, marks=pytest.mark.slow)])
def test_the_newest_intact_checkpoint_is_used_and_the_harmed_one_set_aside(intact, tmp_path, caplog, table, name):
    begin, count = time.monotonic(), 0
    every = name is None  # all files in all ways: a minute
    for number, one in enumerate(files(intact / FOLDER / "6") if every else [name]):
        for way, harm in zip(NAMES, HARMS, strict=True):
            caplog.clear()
            step = fallen_back(intact, tmp_path / f"{number}-{way}", one, harm)
            count += 1
            if one in integrity.UNLISTED[:2]:
                assert step == 6
            elif step == 3:
                assert f"{one} " in caplog.text and "is damaged" in caplog.text
            else:
                assert harm is half  # and the second half was nothing but zeros
    if every:
        table(
            f"each file of a checkpoint {', '.join(NAMES)}",
            "named on stderr, set aside; the newest intact checkpoint is used",
            (time.monotonic() - begin) / count,
        )


def test_without_an_intact_one_nothing_changes_on_disk(intact, tmp_path, table):
    workdir = tmp_path / "run"
    shutil.copytree(intact, workdir)
    for step in (3, 6):
        flip(workdir / FOLDER / str(step) / "opt_state" / "manifest.ocdbt")
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    begin = time.monotonic()
    with (
        Checkpoints(workdir) as checkpoints,
        pytest.raises(ValueError, match=r"no intact checkpoint; damaged: \[6, 3\]"),
    ):
        checkpoints.restore(state(3))
    assert {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()} == before
    table("every checkpoint damaged", "an error; nothing is deleted, renamed or overwritten", time.monotonic() - begin)


@pytest.fixture
def small(tmp_path):
    """A folder with room for one megabyte, `small("remount,ro")` of which changes how it is mounted."""
    folder = tmp_path / "small"
    folder.mkdir()

    def mount(options):
        process = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True
        )
        if process.returncode:
            pytest.skip(f"no file system can be mounted here: {process.stderr.strip()}")

    mount("size=1m")
    yield folder, mount
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize(
    ("fault", "said"), [("full", "No space left on device"), ("read-only", "Read-only file system")]
)
def test_a_disk_that_is_full_or_read_only_leaves_earlier_checkpoints_as_they_are(small, table, fault, said):
    folder, mount = small
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(state(3), RECIPE)
        checkpoints.wait()
        begin = time.monotonic()
        if fault == "full":
            (folder / "filling").write_bytes(bytes(_room(folder)))
        else:
            mount("remount,ro")
        with pytest.raises(
            exits.NotSaved, match=rf"checkpoint 6 cannot .*{said}.* those of steps \[3\] are as they were"
        ):
            checkpoints.save(state(6), RECIPE)
            checkpoints.wait()
        seconds = time.monotonic() - begin
        if fault == "full":
            (folder / "filling").unlink()
        else:
            mount("remount,rw")
        jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(state(3)).state, state(3))
        checkpoints.save(state(9), RECIPE)
        assert checkpoints.restore(state(3)).step == 9
    happens = 'one line; the run ends with code 74, or goes on with training.on_save_error="continue"'
    table(f"a {fault} disk", happens, seconds)


def _room(folder):
    """Bytes that are left, but for a few that are not enough for a checkpoint."""
    status = shutil.disk_usage(folder)
    return status.free - 8192
