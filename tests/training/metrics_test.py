import importlib
import json
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest

from transformer.training import metrics


def test_lines_are_valid_json_and_on_disk_at_once(tmp_path):
    with metrics.Writer(tmp_path / "run") as writer:
        writer.write(1, {"loss": jnp.float32(0.5), "finite": jnp.array(True), "count": np.int64(3)})
        writer.write(2, {"loss": float("nan"), "norm": jnp.float32(np.inf), "note": "late"})
        lines = (tmp_path / "run" / metrics.FILE).read_text().splitlines()

    def refuse(constant):
        return pytest.fail(f"{constant} is no JSON")

    rows = [json.loads(line, parse_constant=refuse) for line in lines]
    assert rows == [
        {"step": 1, "loss": 0.5, "finite": True, "count": 3},
        {"step": 2, "loss": None, "norm": None, "note": "late"},
    ]
    assert metrics.read(tmp_path / "run") == rows


def write(tmp_path, steps, start=0):
    with metrics.Writer(tmp_path, start) as writer:
        for step in steps:
            writer.write(step, {"loss": step / 2})


def test_resuming_drops_the_lines_beyond_the_restored_step(tmp_path):
    write(tmp_path, range(1, 6))
    write(tmp_path, [4, 5], start=3)
    assert [row["step"] for row in metrics.read(tmp_path)] == [1, 2, 3, 4, 5]
    write(tmp_path, [0], start=0)
    assert [row["step"] for row in metrics.read(tmp_path)] == [0]
    assert [path.name for path in tmp_path.iterdir()] == [metrics.FILE]


def test_a_line_cut_short_by_a_crash_is_dropped(tmp_path):
    write(tmp_path, [1, 2])
    path = tmp_path / metrics.FILE
    path.write_text(path.read_text() + '{"step": 3, "lo')
    assert [row["step"] for row in metrics.read(tmp_path)] == [1, 2]
    write(tmp_path, [3], start=2)
    assert [row["step"] for row in metrics.read(tmp_path)] == [1, 2, 3]


def test_damage_in_the_middle_is_an_error_and_loses_nothing(tmp_path):
    path = tmp_path / metrics.FILE
    path.write_text('{"step": 1}\nbroken\n{"step": 2}\n')
    with pytest.raises(ValueError, match="line 2 is no line of metrics"):
        metrics.Writer(tmp_path, 2)
    assert "broken" in path.read_text()


class Board:
    def __init__(self, folder, purge_step):
        self.folder, self.purge_step, self.seen, self.closed = folder, purge_step, [], False
        Board.last = self

    def add_scalar(self, *scalar):
        self.seen.append(scalar)

    def close(self):
        self.closed = True


class Run:
    def __init__(self, **options):
        self.options, self.seen, self.finished = options, [], False
        Run.last = self

    def log(self, values, step):
        self.seen.append((step, values))

    def finish(self):
        self.finished = True


def test_tensorboard_and_wandb_get_the_same_numbers(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=Board))
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=lambda **options: Run(**options)))
    with metrics.Writer(tmp_path, 6, tensorboard=True, wandb="project") as writer:
        writer.write(7, {"loss": jnp.float32(0.5), "norm": float("nan")})
    first = Run.last
    assert Board.last.seen == [("loss", 0.5, 7)] and Board.last.closed and Board.last.purge_step == 7
    assert first.seen == [(7, {"loss": 0.5})] and first.finished and first.options["project"] == "project"
    metrics.Writer(tmp_path, 7, wandb="project").close()
    assert Run.last is not first and Run.last.options["id"] == first.options["id"]


@pytest.mark.parametrize(
    ("module", "options"), [("tensorboardX", {"tensorboard": True}), ("wandb", {"wandb": "project"})]
)
def test_a_missing_extra_is_named(tmp_path, monkeypatch, module, options):
    monkeypatch.setitem(sys.modules, module, None)
    extra = next(iter(options))
    with pytest.raises(ValueError, match=rf"{extra} is not installed: pip install 'transformer-research\[{extra}\]'"):
        metrics.Writer(tmp_path, **options)


def test_extras_are_not_imported_unasked(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib, "import_module", lambda name: pytest.fail(f"{name} was imported"))
    metrics.Writer(tmp_path).close()
