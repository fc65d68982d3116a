"""What a moment of a trace is counted for, and what is read from traces of devices that are not here."""

import jax
import pytest

from experiments import traces

PROGRAM = ("jit_step", 1)


def event(name, line, start, end, done=0):
    return traces.Event((PROGRAM, name), line, start * 1e9, end * 1e9, max(end, done) * 1e9)


def seconds(*events, control=()):
    taken = traces.exclusive(events, {(PROGRAM, name) for name in control})
    return {name: pytest.approx(value) for (_, name), value in taken.items()}


def test_a_loop_gets_what_is_left_between_the_operations_in_it():
    loop = event("loop", 0, 0, 10)
    assert seconds(loop, event("dot", 0, 1, 4), event("dot", 0, 5, 9), control=["loop"]) == {"loop": 3, "dot": 7}


def test_of_operations_in_one_another_the_innermost_gets_the_time():
    assert seconds(event("call", 0, 0, 10), event("dot", 0, 1, 4), event("add", 0, 4, 9)) == {
        "call": 2,
        "dot": 3,
        "add": 5,
    }


def test_lines_that_work_at_one_time_share_it():
    assert seconds(event("dot", 0, 0, 6), event("add", 1, 4, 10)) == {"dot": 5, "add": 5}


def test_an_operation_that_others_finish_is_counted_until_it_is_done_or_another_begins():
    assert seconds(event("dot", 0, 0, 1, done=8), event("add", 1, 6, 9)) == {"dot": 6, "add": 3}
    # The first one's end is seen late: what began after it has the time.
    assert seconds(event("dot", 0, 0, 1, done=8), event("second", 0, 2, 3, done=7)) == {"dot": 3, "second": 5}


def test_a_loop_that_only_waits_gets_nothing_while_another_line_works():
    loop = event("loop", 0, 0, 10)
    taken = seconds(loop, event("dot", 1, 2, 3, done=5), event("add", 2, 7, 9), control=["loop"])
    assert taken == {"loop": 5, "dot": 3, "add": 2}


def test_idle_time_is_nobodys():
    assert seconds(event("dot", 0, 0, 1), event("dot", 0, 5, 6)) == {"dot": 2}
    assert seconds() == {}


# As XLA's documentation and CUPTI's names have it; no such device took part.
GPU = """
planes {{ name: "/host:CPU"
  lines {{ name: "python" events {{ metadata_id: 1 offset_ps: 0 duration_ps: 9000000000000 }} }}
  event_metadata {{ key: 1 value {{ id: 1 name: "dot.1" }} }} }}
{device}
"""
DEVICE = """
planes {{ name: "/device:GPU:{number}"
  lines {{ name: "Stream #13(Compute)"
    events {{ metadata_id: 1 offset_ps: 0 duration_ps: 3000000000000
      stats {{ metadata_id: 1 str_value: "dot.1" }} stats {{ metadata_id: 2 str_value: "jit_absent" }} }} }}
  lines {{ name: "Stream #14(MemcpyH2D)"
    events {{ metadata_id: 2 offset_ps: 1000000000000 duration_ps: 4000000000000 }} }}
  lines {{ name: "XLA Modules" events {{ metadata_id: 1 offset_ps: 0 duration_ps: 9000000000000 }} }}
  event_metadata {{ key: 1 value {{ id: 1 name: "ampere_sgemm" }} }}
  event_metadata {{ key: 2 value {{ id: 2 name: "MemcpyH2D" }} }}
  stat_metadata {{ key: 1 value {{ id: 1 name: "hlo_op" }} }}
  stat_metadata {{ key: 2 value {{ id: 2 name: "hlo_module" }} }} }}
"""


def test_streams_of_several_accelerators_are_read_and_the_host_is_not(tmp_path):
    text = GPU.format(device="".join(DEVICE.format(number=number) for number in (0, 1)))
    folder = tmp_path / "plugins" / "profile" / "now"
    folder.mkdir(parents=True)
    space = jax.profiler.ProfileData.text_proto_to_serialized_xspace(text)
    (folder / "host.xplane.pb").write_bytes(space)
    trace = traces.read(tmp_path)
    rows = {operation.name: operation for operation in trace.operations}
    assert (rows["dot.1"].category, rows["dot.1"].calls) == ("matrix product", 2)
    assert (rows["MemcpyH2D"].category, rows["MemcpyH2D"].calls) == ("host", 2)
    # On each device 1 s of the product alone, 2 s shared, 2 s of the transfer alone.
    assert [rows[name].seconds for name in ("dot.1", "MemcpyH2D")] == [pytest.approx(2 * 2), pytest.approx(2 * 3)]
    assert (trace.devices, trace.busy) == (2, pytest.approx(2 * 5))
