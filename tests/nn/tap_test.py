from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer.models.config import Attention, ModelConfig, Stack
from transformer.models.transformer import Transformer
from transformer.nn.tap import MODES, SITES, Patch, Tap, Taps, in_forward_order, match, split

SIZES = {"B": 2, "T": 3, "S": 4, "H": 4, "G": 2, "K": 5, "D": 6, "F": 7, "V": 8, "N": 9}
NAMES = ("decoder/embedding", "decoder/0/pattern", "decoder/1/pattern", "decoder/1/mlp/inner", "logits")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("axes", sorted(set(SITES.values())))
def test_a_patch_changes_its_slice_and_nothing_else(axes, mode):
    draw = np.random.default_rng(0)
    x = draw.normal(size=[SIZES[letter] for letter in axes]).astype(np.float32)
    mask, value = draw.random(x.shape) < 0.7, draw.normal(size=x.shape[1:]).astype(np.float32)
    head = 1 if set(axes) & set("HG") else None
    out = Patch("site", value, mode, layer=5, head=head, position=2, mask=mask).apply(x, axes, jnp.int32(5))
    chosen = np.zeros(x.shape, bool)
    place = [slice(None)] * x.ndim
    place[axes.index("T") if "T" in axes else axes.index("S")] = 2
    if head is not None:
        place[axes.index("H") if "H" in axes else axes.index("G")] = head
    chosen[tuple(place)] = True
    new = {"set": np.broadcast_to(value, x.shape), "add": x + value, "scale": x * value}[mode]
    np.testing.assert_array_equal(out, np.where(chosen & mask, new, x))
    np.testing.assert_array_equal(Patch("site", value, mode, layer=5).apply(x, axes, jnp.int32(4)), x)


def test_a_patch_keeps_the_dtype_of_its_site():
    out = Patch("site", 0.1, "add").apply(jnp.ones((1, 2, 3), jnp.bfloat16), "BTD")
    assert out.dtype == jnp.bfloat16


def test_a_tap_hands_back_the_array_itself_unless_asked():
    x = jnp.ones((1, 2, 6))
    tap = Tap(["logits"], [Patch("decoder/*/output", 2.0)])
    assert tap("decoder/embedding", x) is x and not tap.wants("decoder/embedding")
    assert tap("logits", x) is x and tap.wants("logits")
    inner = tap.at_layer("decoder", 0)
    assert inner.wants("output") and not inner.under("cross").wants("output")
    assert np.all(inner("output", x) == 2.0)
    assert list(tap.taps()) == ["logits"]


def model(roles: str):
    part = Stack(depth=2, dropout=0.1, attention=Attention(heads=2, dropout=0.1))
    return Transformer(ModelConfig(vocab=11, width=8, **dict.fromkeys(roles.split(), part)))


def programs(roles: str, compile: bool = False, **tapped) -> list[str]:
    """The forward pass and the gradient of a training loss, as they are handed to the compiler or as it leaves them."""
    tokens = jnp.zeros((2, 3), jnp.int32)
    arguments = {"source": tokens} if len(roles.split()) == 2 else {}
    network = model(roles)
    params = jax.eval_shape(network.init, jax.random.key(0), tokens, **arguments)["params"]

    def forward(params, tokens):
        return network.apply({"params": params}, tokens, **arguments, **tapped)

    def loss(params, tokens):
        rngs = {"dropout": jax.random.key(1)}
        return jnp.sum(network.apply({"params": params}, tokens, train=True, rngs=rngs, **arguments, **tapped))

    lowered = [jax.jit(f).lower(params, tokens) for f in (forward, jax.grad(loss))]
    return [(program.compile() if compile else program).as_text() for program in lowered]


@pytest.mark.parametrize("roles", ["decoder", "encoder", "encoder decoder"])
def test_unused_taps_leave_the_program_as_it_is_without_taps(roles, monkeypatch):
    plain = programs(roles)
    assert programs(roles, tap=Tap()) == plain
    patched = programs(roles, tap=Tap((), [Patch("logits", 0.0, position=0)]))
    assert all(with_patch != without for with_patch, without in zip(patched, plain, strict=True))
    monkeypatch.setattr(Tap, "__call__", lambda self, name, x: x)
    monkeypatch.setattr(Tap, "wants", lambda self, name: False)
    assert programs(roles) == plain


def test_unused_taps_leave_the_compiled_program_as_it_is(monkeypatch):
    # An encoder-decoder has every kind of site; the layer scan, dropout and the gradient are in the second program.
    def compiled(**tapped):
        texts = programs("encoder decoder", compile=True, **tapped)
        # Which line of this file called what is no part of the program.
        return [re.sub(r", metadata=\{[^}]*\}|^\d+ (\{.*\}|\".*\")$", "", text, flags=re.MULTILINE) for text in texts]

    plain = compiled()
    assert compiled(tap=Tap()) == plain
    monkeypatch.setattr(Tap, "__call__", lambda self, name, x: x)
    assert compiled() == plain


def test_readers_keep_what_they_return():
    tap = Tap({"decoder/embedding": jnp.sum, "logits": None, "decoder/1/key": jnp.max, "decoder/0/key": jnp.max})
    x = jnp.arange(6.0).reshape(1, 2, 3)
    assert tap("decoder/embedding", x) is x and tap("logits", x) is x
    assert tap.taps()["decoder/embedding"] == 15 and tap.taps()["logits"] is x
    inner = tap.at_layer("decoder", 0)
    assert inner("key", x) is x and inner.captured == {"decoder/*/key": 5}
    with pytest.raises(ValueError, match=r"decoder/\*/key is captured in two ways: ask the same of each layer"):
        Tap({"decoder/1/key": jnp.max, "decoder/0/key": None}).at_layer("decoder", 0)


def test_a_model_reduces_each_layer_where_it_stands():
    tokens = jnp.arange(6).reshape(2, 3)
    network = model("decoder")
    params = network.init(jax.random.key(0), tokens)["params"]
    sites = [f"decoder/{layer}/pattern" for layer in (0, 1)]
    whole, reduced = Tap(sites), Tap(dict.fromkeys(sites, lambda x: x.max(axis=(0, 2, 3))))
    for tap in (whole, reduced):
        network.apply({"params": params}, tokens, tap=tap)
    kept = reduced.taps().stacked()["decoder/*/pattern"]
    np.testing.assert_allclose(kept, whole.taps()["decoder/*/pattern"].max(axis=(1, 3, 4)))
    assert kept.shape == (2, 2)


@pytest.fixture
def taps():
    draw = np.random.default_rng(0)
    arrays = {"decoder/*/pattern": draw.normal(size=(2, 1, 2, 3, 3)), "logits": draw.normal(size=(1, 3, 4))}
    return Taps(arrays, {"decoder/*/pattern": (1, 4)})


def test_taps_answer_to_one_layer_and_to_all(taps):
    assert list(taps) == ["decoder/1/pattern", "decoder/4/pattern", "logits"] and len(taps) == 3
    np.testing.assert_array_equal(taps["decoder/4/pattern"], taps["decoder/*/pattern"][1])
    assert taps.layers("decoder/*/pattern") == (1, 4) and "decoder/0/pattern" not in taps
    assert repr(taps) == "Taps(decoder/*/pattern of layers 1, 4: [2, 1, 2, 3, 3], logits: [1, 3, 4])"
    with pytest.raises(KeyError, match=r"decoder/0/pattern was not captured; captured: .* of layers 1, 4"):
        taps["decoder/0/pattern"]


def test_taps_are_a_pytree_named_by_site(taps):
    doubled = jax.tree.map(lambda x: 2 * x, taps)
    np.testing.assert_array_equal(doubled["decoder/1/pattern"], 2 * taps["decoder/1/pattern"])
    leaves, structure = jax.tree.flatten(taps)
    assert jax.tree.unflatten(structure, leaves) == taps
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(taps)]
    assert paths == ["['decoder/*/pattern']", "['logits']"]
    host = jax.device_get(jax.jit(lambda t: t)(taps))
    assert all(isinstance(array, np.ndarray) for array in host.values())


def test_taps_are_equal_when_sites_layers_and_numbers_are(taps):
    assert taps == jax.tree.map(np.copy, taps)
    assert taps != jax.tree.map(lambda x: x + 1, taps)
    assert taps != Taps(taps.stacked(), {"decoder/*/pattern": (1, 5)}) and taps != dict(taps)


def test_axes_in_front_stay_in_front_and_lost_axes_are_noticed(taps):
    many = jax.tree.map(lambda x: np.stack([x, 2 * x, 3 * x]), taps)
    np.testing.assert_array_equal(many["decoder/4/pattern"][2], 3 * taps["decoder/4/pattern"])
    with pytest.raises(ValueError, match="has lost axes"):
        jax.tree.map(lambda x: x.mean(axis=1), taps)["decoder/4/pattern"]


@pytest.mark.parametrize(
    "pattern, expected",
    [
        ("decoder/*/pattern", NAMES[1:3]),
        ("decoder/1/**", NAMES[2:4]),
        ("decoder/*", NAMES[:1]),
        ("*", NAMES[4:]),
        ("**", NAMES),
        ("**/inner", NAMES[3:4]),
        ("logits", NAMES[4:]),
    ],
)
def test_globs_stay_within_a_step_unless_doubled(pattern, expected):
    assert match([pattern], NAMES) == frozenset(expected)


@pytest.mark.parametrize("pattern", ["decoder/*/patern", "decoder/2/pattern", "pattern", "decoder.1.pattern"])
def test_a_glob_without_match_names_the_nearest(pattern):
    with pytest.raises(ValueError, match=r"no site is called .*; the nearest are .*pattern"):
        match(["logits", pattern], NAMES)


def test_names_split_and_sort_in_forward_order():
    assert split("decoder/12/cross/key") == ("decoder/*/cross/key", 12)
    assert split("decoder/*/key") == ("decoder/*/key", None) and split("logits") == ("logits", None)
    ordered = [
        "encoder/0/key",
        "encoder/final_norm",
        "decoder/embedding",
        "decoder/2/mlp/outer",
        "decoder/10/query",
        "logits",
    ]
    assert in_forward_order(reversed(ordered)) == ordered
