import functools

import jax
import pytest

from launch import collectives

GPU = """HloModule jit_step, num_partitions=8

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(f32[] %x, f32[] %y)
}

%body (arg: (s32[], f32[4,6])) -> (s32[], f32[4,6]) {
  %ag = bf16[16,6]{1,0} all-gather(bf16[4,6]{1,0} %part), replica_groups=[2,4]<=[8], dimensions={0}
  %start = (bf16[4,6]{1,0}, bf16[4,6]{1,0}) collective-permute-start(bf16[4,6]{1,0} %part), source_target_pairs={{0,1}}
  %done = bf16[4,6]{1,0} collective-permute-done((bf16[4,6]{1,0}, bf16[4,6]{1,0}) %start)
}

%condition (arg: (s32[], f32[4,6])) -> pred[] {
  %limit = s32[] constant(12)
  ROOT %less = pred[] compare(s32[] %index, s32[] %limit), direction=LT
}

%all-reduce-scatter.1 (input: f32[8,6]) -> f32[4,6] {
  %sum = f32[8,6]{1,0} all-reduce(f32[8,6]{1,0} %input), replica_groups={{0,4},{1,5}}, to_apply=%add
}

ENTRY %main (p: f32[4,6]) -> f32[] {
  %loop = (s32[], f32[4,6]) while((s32[], f32[4,6]) %init), condition=%condition, body=%body
  %known = (s32[], f32[4,6]) while(%init), condition=%odd, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %scattered = f32[4,6]{1,0} fusion(f32[8,6]{1,0} %g), kind=kCustom, calls=%all-reduce-scatter.1
  %norm = (f32[], f32[2]) all-reduce(f32[] %a, f32[2] %b), replica_groups=mesh['a'=2,'b'=4] {'a','b'}, to_apply=%add
  %own = f32[2,6]{1,0} reduce-scatter(f32[4,6]{1,0} %c), replica_groups={{0,1}}, dimensions={0}, to_apply=%add
}
"""


def test_kinds_groups_loops_and_bytes():
    found = {(each.kind, each.group): (each.calls, each.bytes) for each in collectives.read(GPU, 8)}
    assert found == {
        ("all-gather", 4): (15, 15 * 16 * 6 * 2 * 3 / 4),
        ("collective-permute", 2): (15, 15 * 4 * 6 * 2),
        ("reduce-scatter", 2): (2, 8 * 6 * 4 / 2 + 2 * 6 * 4),  # one as TPUs write it, one as it is called
        ("all-reduce", 8): (1, 2 * 3 * 4 * 7 / 8),
    }


def test_those_that_send_most_come_first():
    sent = [each.bytes for each in collectives.read(GPU, 8)]
    assert sent == sorted(sent, reverse=True)


def test_a_program_of_one_device_sends_nothing():
    program = jax.jit(functools.partial(jax.lax.fori_loop, 0, 3, lambda _, x: x @ x)).lower(jax.numpy.ones((2, 2)))
    assert collectives.read(program.compile().as_text(), 1) == []


@pytest.mark.parametrize("text", ["", "HloModule empty\n\nENTRY %main () -> f32[] {\n}\n"])
def test_nothing(text):
    assert collectives.read(text, 4) == []
