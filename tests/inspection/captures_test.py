from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer import inspection
from transformer.inspection import Capture
from transformer.nn.tap import SITES


@pytest.fixture(scope="module")
def everything(build):
    model, params, tokens, arguments = build("encoder and decoder")
    return inspection.run(model, params, tokens, capture="**", **arguments)[1]


@pytest.mark.parametrize(
    "capture, layers, head, position",
    [
        (Capture("decoder/*/pattern", head=2), (0, 1), [2], None),
        (Capture("decoder/*/cross/pattern", layer=-1, head=(3, 0), position=-1), (1,), [3, 0], [4]),
        (Capture("decoder/1/key", head=-1, position=(0, 3)), (1,), [1], [0, 3]),
        (Capture("encoder/*/head_output", layer=(0,), position=(6, -7)), (0,), None, [6, 0]),
        (Capture("*/*/residual_p*", position=np.int64(1)), (0, 1), None, [1]),
        (Capture("logits", position=(1, 1)), None, None, [1, 1]),
    ],
    ids=lambda case: case.site if isinstance(case, Capture) else "",
)
def test_a_capture_is_a_slice_of_the_whole(build, everything, capture, layers, head, position):
    model, params, tokens, arguments = build("encoder and decoder")
    _, taps = inspection.run(model, params, tokens, capture=capture, **arguments)
    assert len(taps) > 0
    for site in taps:
        starred = site if site in SITES else "/".join([site.split("/")[0], "*", *site.split("/")[2:]])
        expected, axes = np.asarray(everything[site]), SITES[starred]
        if head is not None:
            expected = expected.take(head, axis=axes.index("H" if "H" in axes else "G"))
        if position is not None:
            expected = expected.take(position, axis=axes.index("T" if "T" in axes else "S"))
        np.testing.assert_allclose(taps[site], expected, rtol=1e-5, atol=1e-5, err_msg=site)
        assert layers is None or taps.layers(starred) == layers


def test_a_dtype_rounds_what_is_kept_and_nothing_else(build, everything):
    model, params, tokens, arguments = build("encoder and decoder")
    capture = (Capture("decoder/*/pattern", dtype="bfloat16"), "logits")
    _, taps = inspection.run(model, params, tokens, capture=capture, **arguments)
    assert taps["decoder/0/pattern"].dtype == jnp.bfloat16
    np.testing.assert_allclose(
        taps["decoder/1/pattern"].astype(np.float32), everything["decoder/1/pattern"], rtol=2**-8
    )
    np.testing.assert_allclose(taps["logits"], everything["logits"], rtol=1e-5, atol=1e-5)


def test_captures_add_up_and_equal_ones_agree(build, everything):
    model, params, tokens, arguments = build("encoder and decoder")
    capture = ("encoder/*/key", Capture("encoder/0/key"), Capture("decoder/0/mixed", head=1))
    _, taps = inspection.run(model, params, tokens, capture=capture, **arguments)
    assert list(taps) == ["encoder/0/key", "encoder/1/key", "decoder/0/mixed"]


def test_one_row_of_a_pattern_is_all_that_is_kept(build):
    model, params, _, _ = build("decoder", depth=12)
    tokens = jnp.zeros((8, 128), jnp.int32)

    def kept(capture):
        out = jax.eval_shape(lambda p, t: inspection.run(model, p, t, capture=capture)[1], params, tokens)
        return sum(leaf.size for leaf in jax.tree.leaves(out))

    def room(capture):
        compiled = jax.jit(lambda p, t: inspection.run(model, p, t, capture=capture)).lower(params, tokens).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    whole, row = "decoder/*/pattern", Capture("decoder/*/pattern", head=1, position=-1)
    assert kept(whole) == 12 * 8 * 4 * 128 * 128 and kept(row) == 12 * 8 * 128
    assert room(row) < room(()) + 12 * 8 * 128 * 4 + 2**16


def test_equal_captures_compile_once(build, caplog):
    model, params, tokens, _ = build("decoder")
    run = lambda: inspection.run(model, params, tokens, capture=Capture("decoder/*/key", head=0))  # noqa: E731
    run()
    with jax.log_compiles(), caplog.at_level("WARNING"):
        run()
    assert not [record for record in caplog.records if "ompil" in record.message]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: 3, r"capture=3 cannot work: give Capture or str, one or several"),
        (lambda: [["logits"]], r"capture=\['logits'\] cannot work"),
        (lambda: Capture("decoder/*/patern", head=1), r"no site is called 'decoder/\*/patern'"),
        (lambda: Capture("decoder/*/pattern", layer=2), r"layer=2 is out of range; there are 2: use 0 to 1"),
        (lambda: Capture("decoder/0/pattern", layer=1), r"it names no layer of layer=\(1,\): write \* for its layer"),
        (lambda: Capture("decoder/*/pattern", head=(0, 4)), r"head=4 is out of range; there are 4"),
        (lambda: Capture("decoder/*/key", head=2), r"head=2 is out of range; there are 2"),
        (lambda: Capture("decoder/*/output", head=0), r"decoder/[01]/output has no heads"),
        (lambda: Capture("logits", layer=0), r"logits has no layers, so leave out layer=\(0,\)"),
        (lambda: Capture("logits", position=-6), r"position=-6 is out of range; there are 5"),
        (lambda: Capture("logits", position=()), r"position=\(\) must be an integer or several"),
        (lambda: Capture("logits", position=1.5), r"position=1.5 must be an integer or several"),
        (lambda: Capture("logits", position=True), r"position=True must be an integer"),
        (lambda: Capture("logits", dtype="float31"), r"dtype='float31' is unknown: use float32"),
        (lambda: Capture("logits", dtype="int32"), r"dtype='int32' is not for activations"),
        (
            lambda: ("decoder/*/key", Capture("decoder/1/key", head=0)),
            r"decoder/1/key is captured in two ways, the second by Capture\(.*: run once for each",
        ),
        (
            lambda: (Capture("decoder/0/key", head=1), Capture("decoder/1/key", head=0)),
            r"decoder/\*/key is captured in two ways: ask the same of each layer",
        ),
    ],
)
def test_a_capture_that_cannot_have_been_meant_is_refused_in_one_line(build, make, message):
    model, params, tokens, _ = build("decoder")
    with pytest.raises(ValueError, match=message) as error:
        inspection.run(model, params, tokens, capture=make())
    assert "\n" not in str(error.value)
