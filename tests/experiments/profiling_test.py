"""Traces of programs whose costliest operation is known, and of the scripts."""

import contextlib
import io
import pathlib
import re
import types

import jax
import jax.numpy as jnp
import pytest
from rich.console import Console

from experiments import hlo, profiling, traces

CALLS, TURNS = 3, 7


@jax.jit
def known(x):
    """A product of 1536 ** 3 multiplications among others of 7 * 64 ** 3, which a busy machine seldom makes slower."""
    with jax.named_scope("model"), jax.named_scope("large"):
        y = x @ x

    def turn(carry, _):
        with jax.named_scope("small"):
            return jnp.sin(carry @ x[:64, :64]), jnp.cos(carry).sum()

    carry, sums = jax.lax.scan(turn, y[:64, :64], None, length=TURNS)
    return jnp.tanh(carry).T, sums


def console():
    return Console(file=io.StringIO(), width=140)


@pytest.fixture(scope="module")
def profile(tmp_path_factory):
    x = jnp.ones((1536, 1536))
    jax.block_until_ready(known(x))
    return profiling.call(lambda: [known(x) for _ in range(CALLS)], tmp_path_factory.mktemp("profile"))


def test_the_costliest_operation_comes_first_with_its_name_in_the_model(profile):
    first = max(profile.trace.operations, key=lambda operation: operation.seconds)
    assert (first.category, first.origin, first.calls) == ("matrix product", "model/large/dot_general", CALLS)
    assert first.seconds > profile.trace.busy / 2  # it does 1,974 times as many multiplications as the others
    written = console()
    profiling.show(profile, written)
    lines = written.file.getvalue().splitlines()
    rows = [re.split(r" *│ *", line)[1:-1] for line in lines if line.startswith("│")]
    assert len(rows) == profiling.ROWS
    assert rows[0][1:3] == ["matrix product", "3"] and rows[0][-1] == "model/large/dot_general"
    shares = [float(row[4].removesuffix("%")) for row in rows]
    assert shares == sorted(shares, reverse=True)
    assert profile.trace.timeline.exists() and f"trace:     {profile.trace.timeline}" in lines


def test_what_runs_in_a_loop_is_counted_once_and_the_loop_without_it(profile):
    rows = {operation.name: operation for operation in profile.trace.operations}
    inner = [row for row in rows.values() if row.origin.startswith("small/") and row.category == "matrix product"]
    assert [row.calls for row in inner] == [CALLS * TURNS]
    (loop,) = (row for row in rows.values() if row.category == "control")
    assert loop.calls == CALLS
    assert sum(row.seconds for row in rows.values()) == pytest.approx(profile.trace.busy)
    assert profile.trace.busy <= profile.wall  # one CPU, whose threads share each moment
    text = hlo.live("jit_known", rows).instructions
    assert rows.keys() <= text.keys()


def test_operations_of_one_origin_and_kind_are_one_row():
    kinds = (("dot.1", "matrix product", 2.0), ("dot.2", "matrix product", 1.5), ("copy.3", "copy/transpose", 1.5))
    operations = [traces.Operation(name, kind, 4, seconds, "decoder/mlp/up") for name, kind, seconds in kinds]
    operations += [traces.Operation(name, "elementwise", 4, 2.5, "") for name in ("add.4", "add.5")]
    trace = traces.Trace(pathlib.Path("here.xplane.pb"), tuple(operations), busy=10.0, devices=1, compiling=0.5)
    written = console()
    profiling.show(profiling.Profile(pathlib.Path(), "2 steps", "step", 2, 20.0, 10.0, trace), written)
    said = written.file.getvalue()
    rows = [re.split(r" *│ *", line)[1:-1] for line in said.splitlines() if line.startswith("│")]
    assert rows == [
        ["dot.1 +1", "matrix product", "8", "3,500.00", "35.0%", "decoder/mlp/up"],
        ["add.4", "elementwise", "4", "2,500.00", "25.0%", ""],
        ["add.5", "elementwise", "4", "2,500.00", "25.0%", ""],
        ["copy.3", "copy/transpose", "4", "1,500.00", "15.0%", "decoder/mlp/up"],
    ]
    assert "the 4 costliest of 4 operations, 100% of the device's time: 2 steps" in said
    assert "10,000.0 ms a step; the device works for 50% of it, this process's threads for 0.5 of" in said
    assert "compiling: 0.50 s" in said


class Counted:
    """A `parallel` that adds one at each step, and multiplies matrices for long enough not to be done at once."""

    def __init__(self):
        self._step = jax.jit(lambda state, batch: (state + batch, {"sum": ((state @ state) ** 2).sum()}))

    def train(self, state, batch):
        return self._step(state, batch)

    def host_state(self, state):
        return jax.device_get(state)


def traced(monkeypatch, folder, remaining, saves):
    """What is said of so many steps, some of which are saved."""
    shown, state = [], jnp.zeros((768, 768))
    monkeypatch.setattr(profiling, "show", lambda profile, _: shown.append(profile))
    written = console()
    with profiling.Profiled(Counted(), folder, remaining, written) as parallel:
        for step in range(1, remaining + 1):
            state, _ = parallel.train(state, jnp.ones(state.shape))
            if step in saves:
                assert (parallel.host_state(state) == step).all()
    return shown, written.file.getvalue()


@pytest.mark.parametrize(
    ("remaining", "saves", "said"),
    [
        (20, (), "4 to 8"),
        (20, (3, 6), "4 to 6"),
        (5, (5,), "4 to 5"),
        (2, (), "2 to 2"),
        (1, (1,), "1 to 1"),
    ],
)
def test_as_many_steps_are_traced_as_there_are(monkeypatch, tmp_path, remaining, saves, said):
    (profile,), written = traced(monkeypatch, tmp_path, remaining, saves)
    first, last = map(int, said.split(" to "))
    assert profile.count == last + 1 - first and f"training steps {said} of" in profile.what
    assert ("fewer than 5" in profile.what) == (profile.count < profiling.STEPS)
    products = [each.calls for each in profile.trace.operations if each.category == "matrix product"]
    assert products == [profile.count]  # the steps before were done when the trace began, and its own when it ended
    assert written == ""


def test_a_run_without_steps_says_that_nothing_was_traced(monkeypatch, tmp_path):
    shown, written = traced(monkeypatch, tmp_path, 0, ())
    assert shown == [] and written.startswith("--profile traced nothing: 0 steps")


def test_an_interrupted_run_leaves_its_trace_and_no_trace_running(monkeypatch, tmp_path):
    def interrupted(state, batch):
        raise KeyboardInterrupt

    with (
        contextlib.suppress(KeyboardInterrupt),
        profiling.Profiled(types.SimpleNamespace(train=interrupted), tmp_path, 1, console()) as parallel,
    ):
        parallel.train(jnp.zeros(2), jnp.zeros(2))
    with contextlib.suppress(KeyboardInterrupt):
        profiling.call(lambda: interrupted(0, 0), tmp_path / "call")
    assert list(tmp_path.glob(traces.XPLANE)) and list((tmp_path / "call").glob(traces.XPLANE))
    with jax.profiler.trace(tmp_path):  # refused while another runs
        pass


INTERRUPTED = """
import os, runpy, signal
from experiments import profiling

train = profiling.Profiled.train

def train_and_interrupt(self, state, batch):
    result = train(self, state, batch)
    if self._step == 5:
        os.kill(os.getpid(), signal.SIGINT)
    return result

profiling.Profiled.train = train_and_interrupt
runpy.run_module("experiments.train", run_name="__main__", alter_sys=True)
"""


def test_scripts_print_the_table_and_go_on_or_end_in_good_order(scripts, tiny, tmp_path):
    workdir, stopped = tmp_path / "run", tmp_path / "stopped"
    (tmp_path / "interrupted.py").write_text(INTERRUPTED)
    short = [f"--config={tiny / 'recipe.py'}", "--config.training.steps=7", "--config.prompts=()", "--profile"]
    writing = ["--prompt=one", "--length=9", "--greedy", "--profile"]
    processes = scripts(
        [
            ["experiments.train", f"--workdir={workdir}", *short],
            ["experiments.generate", f"--workdir={workdir}", *writing],
            [str(tmp_path / "interrupted.py"), f"--workdir={stopped}", *short],
        ]
    )
    fewer = "of this run, fewer than 5"
    expected = (
        (workdir, f"training steps 4 to 6 {fewer}", 0, ""),
        (workdir, "one call", 0, ""),
        (stopped, f"training steps 4 to 5 {fewer}", 0, "stopped: at step 5; the same command goes on from there\n"),
    )
    for process, (folder, what, code, error) in zip(processes, expected, strict=True):
        assert (process.returncode, process.stderr) == (code, error), process.stderr
        assert re.search(rf"the 10 costliest of \d+ operations, \d+% of the device's time: {what}", process.stdout)
        origins = re.findall(r"^│.* (\S+) +│$", process.stdout, re.MULTILINE)
        assert len(origins) == 10 and sum("/" in origin for origin in origins) >= 5  # a scope or a line of the source
        (trace,) = re.findall(r"^trace: +(\S+)$", process.stdout, re.MULTILINE)
        assert trace.startswith(f"{folder / 'profile'}/") and trace.endswith(".trace.json.gz")
    trained, written, _ = processes
    assert trained.stdout.index("costliest") < trained.stdout.index("validation: ")
    assert written.stdout.startswith("one") and "ms a call" in written.stdout
