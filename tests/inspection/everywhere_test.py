"""The toolkit beyond float32 decoders on one device: bfloat16, a sharded mesh, pretrained models, changed futures."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from tests.interop import cases, folders
from transformer import inspection, interop
from transformer.inspection import Capture, Node, Patch


def last(logits):
    return logits[:, -1].mean()


def everything(model, params, tokens, arguments, role):
    """One of each: captures, logits under patches, a sweep, an attribution and a path."""
    other = (tokens + 3) % model.config.vocab
    capture = ("**/pattern", Capture(f"{role}/*/mixed", head=1), f"{role}/0/residual_mid")
    silence = Patch(f"{role}/*/mixed", 0.0)
    _, taps = inspection.run(model, params, tokens, capture=capture, **arguments)
    patched, _ = inspection.run(model, params, tokens, patches=silence.replace(layer=1, head=1), **arguments)
    swept = inspection.sweep(model, params, tokens, silence, metric=last, layers="all", heads="all", **arguments)
    effects = inspection.attribute(model, params, tokens, other, metric=last, sites=f"{role}/*/mixed", **arguments)
    nodes = {"sender": Node(f"{role}/*/mixed", 0, 1), "receivers": [Node(f"{role}/*/key", 1, 0)]}
    path = inspection.path_patch(model, params, tokens, other, **nodes, **arguments)
    return {**taps, "patched": patched, "swept": swept, "path": path, **effects}


@pytest.mark.slow
@pytest.mark.parametrize("roles, role", [("encoder", "encoder"), ("encoder and decoder", "decoder")])
def test_bfloat16_is_float32_but_for_rounding(build, roles, role):
    whole, params, tokens, arguments = build(roles)
    half = build(roles, {"dtype": "bfloat16"})[0]
    expected = everything(whole, params, tokens, arguments, role)
    for name, array in everything(half, params, tokens, arguments, role).items():
        scale = np.abs(expected[name]).max()
        # Two layers of products rounded to 8 bits; an attribution is a small difference of two such numbers.
        bound = 0.3 if name == f"{role}/*/mixed" else 0.1
        np.testing.assert_allclose(np.asarray(array, np.float32), expected[name], atol=bound * scale, err_msg=name)


def test_looking_changes_no_logit_and_what_was_seen_on_the_host_can_be_put_back(build):
    model, params, tokens, _ = build("decoder", {"dtype": "bfloat16"})
    plain, _ = inspection.run(model, params, tokens)
    seen, taps = inspection.run(model, params, tokens, capture=("decoder/*/head_output", "decoder/*/mixed"))
    np.testing.assert_array_equal(plain, seen)
    _, theirs = inspection.run(model, params, (tokens + 3) % 11, capture="decoder/*/mixed")
    patched = [
        inspection.run(model, params, tokens, patches=Patch("decoder/*/mixed", found["decoder/*/mixed"]))[0]
        for found in (theirs, jax.device_get(theirs))
    ]
    np.testing.assert_array_equal(*patched)
    assert np.abs(patched[0] - plain).max() > 1e-2
    assert taps["decoder/0/mixed"].dtype == jnp.bfloat16


@pytest.mark.parametrize("case", ["gpt2", pytest.param("t5", marks=pytest.mark.slow)])
def test_a_loaded_model_is_swept_as_heads_are_cut_out_of_its_parameters(case, tmp_path):
    model, params, _ = interop.load(folders.write(tmp_path / case, case))
    tokens = jnp.asarray(cases.target())
    arguments = {"source": tokens[:, ::-1]} if model.config.encoder else {}
    kernel = params["decoder"]["blocks"]["attention"]["output"]["kernel"]
    run = jax.jit(lambda kernel: last(model.apply({"params": with_kernel(params, kernel)}, tokens, **arguments)))
    found = everything(model, params, tokens, arguments, "decoder")
    depth, heads = kernel.shape[:2]
    expected = [[run(kernel.at[layer, head].set(0)) for head in range(heads)] for layer in range(depth)]
    np.testing.assert_allclose(found["swept"], expected, rtol=1e-4, atol=1e-5)
    assert np.std(expected) > 1e-3
    for site in (site for site in found if site.endswith("/pattern")):
        np.testing.assert_allclose(found[site].sum(axis=-1), 1, atol=1e-5)


def with_kernel(params, kernel):
    blocks = params["decoder"]["blocks"]
    attention = {**blocks["attention"], "output": {**blocks["attention"]["output"], "kernel": kernel}}
    return {**params, "decoder": {**params["decoder"], "blocks": {**blocks, "attention": attention}}}


@pytest.mark.parametrize("site", ["decoder/*/residual_pre", "decoder/*/key", "decoder/*/value", "decoder/embedding"])
def test_a_change_of_the_future_leaves_the_past_alone(build, site):
    model, params, tokens, _ = build("decoder")
    patch = Patch(site, 2.0, "add", position=3)
    clean, before = inspection.run(model, params, tokens, capture="**/residual_post")
    changed, after = inspection.run(model, params, tokens, capture="**/residual_post", patches=patch)
    np.testing.assert_array_equal(changed[:, :3], clean[:, :3])
    for name in before:
        np.testing.assert_array_equal(after[name][:, :3], before[name][:, :3])
    assert all(np.abs(changed[:, place] - clean[:, place]).max() > 1e-3 for place in (3, 4))


def on_a_mesh():
    """In a process with four devices: rows over one axis, heads and inner features over the other."""
    from tests.inspection.conftest import build

    mesh = jax.make_mesh((2, 2), ("rows", "parts"), axis_types=(AxisType.Auto,) * 2)
    model, params, tokens, arguments = build("encoder and decoder")
    expected = everything(model, params, tokens, arguments, "decoder")

    def place(path, leaf):
        names = [part.key for part in path]
        axis = {"query": 2, "key": 2, "value": 2, "output": 1, "up": 2, "gate": 2, "down": 1}
        spec = [None] * leaf.ndim
        if names[-1] == "kernel" and names[-2] in axis:
            spec[axis[names[-2]]] = "parts"
        return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(*spec)))

    sharded = jax.tree_util.tree_map_with_path(place, params)
    rows = NamedSharding(mesh, PartitionSpec("rows"))
    found = everything(model, sharded, jax.device_put(tokens, rows), jax.device_put(arguments, rows), "decoder")
    for name, array in found.items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-4, atol=1e-5, err_msg=name)
    assert len(found["decoder/0/pattern"].sharding.device_set) == 4


@pytest.mark.slow
def test_a_sharded_mesh_gives_the_numbers_of_one_device(environment):
    root = str(Path(inspection.__file__).parents[2])
    program = "from tests.inspection.everywhere_test import on_a_mesh; on_a_mesh()"
    call = {"env": environment(4), "cwd": root, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "-c", program], **call)
    assert done.returncode == 0, done.stderr
