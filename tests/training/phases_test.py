import json

import jax
import jax.numpy as jnp
import pytest

from transformer.training import phases as module
from transformer.training.phases import Phases


@pytest.fixture
def clock(monkeypatch):
    """Time that only goes on when it is told to."""

    class Clock:
        now = 100.0

        def perf_counter(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_every_second_is_of_one_phase(clock):
    phases = Phases()
    clock.now += 3
    phases.enter("step")
    clock.now += 4
    with phases.within("evaluation"):
        clock.now += 2
    clock.now += 1
    phases.shift(1.5, "data")
    phases.count(10.0)
    assert phases.moved == clock.now
    report = phases.report(2, 3)
    assert report["seconds"] == dict.fromkeys(module.PHASES, 0.0) | {
        "restart": 3.0, "step": 3.5, "evaluation": 2.0, "data": 1.5, "all": 10.0
    }  # fmt: skip
    assert (report["steps"], report["tokens"], report["useful"]) == (1, 10, 0.35)


def test_what_is_rolled_back_is_lost(clock):
    phases = Phases("step")
    clock.now += 2
    phases.count(5.0)
    phases.enter("step")
    phases.save()
    clock.now += 3
    phases.count(5.0)
    phases.lose()
    clock.now += 4
    report = phases.report(0, 1)
    assert (report["seconds"]["lost"], report["seconds"]["step"]) == (3.0, 6.0)
    assert (report["steps"], report["tokens"]) == (1, 5)


def test_compiling_is_told_apart_and_nothing_is_counted_twice():
    phases = Phases("step")
    inner = jax.jit(lambda x: jnp.sin(x) * 3)
    with phases:
        jax.jit(lambda x: inner(x) + inner(x * 2))(jnp.ones(7)).block_until_ready()
    before = phases.seconds["compile"]
    assert before > 0 and phases.seconds["step"] >= 0  # tracing inside tracing would make it negative
    jax.jit(lambda x: x * 5)(jnp.ones(3))
    assert phases.seconds["compile"] == before  # nobody listens any more


def test_a_report_is_added_to_those_before_and_shown(tmp_path):
    phases = Phases()
    for last in (3, 5):
        module.write(tmp_path, phases.report(0, last))
    lines = (tmp_path / module.FILE).read_text().splitlines()
    assert [json.loads(line)["last_step"] for line in lines] == [3, 5]
    table = module.table(phases.report(0, 5))
    assert str(table.title).startswith("steps 0 to 5: 0 steps, 0 tokens")
