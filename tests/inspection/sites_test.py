from __future__ import annotations

import jax.numpy as jnp
import pytest

from transformer import inspection
from transformer.models.config import PLACEMENTS, POSITIONS, Attention, ModelConfig, Position, Stack
from transformer.models.feed_forward import Experts, Mlp
from transformer.models.transformer import Transformer

HEADS = ("query", "key", "value", "scores", "pattern", "mixed", "head_output", "output")
FEED_FORWARD = ("mlp/inner", "mlp/outer", "residual_post")


def expected_names(role: str, depth: int, crosses: bool, absolute: bool, mlp: bool) -> list[str]:
    block = ["residual_pre", *HEADS, "residual_mid"]
    block += [*(f"cross/{name}" for name in HEADS), "residual_cross"] if crosses else []
    block += FEED_FORWARD if mlp else ["residual_post"]
    names = ["embedding", *(["positions"] if absolute else [])]
    names += [f"{layer}/{name}" for layer in range(depth) for name in block]
    return [f"{role}/{name}" for name in (*names, "final_norm")]


@pytest.mark.parametrize("kind", POSITIONS)
@pytest.mark.parametrize("roles", [("decoder",), ("encoder",), ("encoder", "decoder")])
def test_every_site_in_forward_order_with_the_shape_of_its_axes(roles, kind, build):
    for placement in PLACEMENTS:
        model, *_ = build(" ".join(roles), norm_placement=placement, position=Position(kind=kind))
        found = inspection.sites(model, batch=3, length=5, source_length=7)
        crosses, absolute = len(roles) == 2, kind in ("learned", "sinusoidal")
        names = [n for role in roles for n in expected_names(role, 2, crosses and role == "decoder", absolute, True)]
        assert list(found) == [*names, "logits"]
        for name, site in found.items():
            sizes = {"B": 3, "D": 8, "H": 4, "G": 2, "K": 6, "F": 32, "V": 11}
            sizes["T"] = 7 if crosses and name.startswith("encoder/") else 5
            sizes["S"] = 7 if crosses and (name.startswith("encoder/") or "/cross/" in name) else 5
            shape = tuple(sizes[letter] for letter in site.axes)
            assert site.shape == shape and site.dtype == jnp.float32, name


def test_an_attention_only_block_has_no_feed_forward_sites(build):
    model, *_ = build("decoder", mlp=None)
    assert list(inspection.sites(model)) == [*expected_names("decoder", 2, False, False, False), "logits"]


def test_experts_have_a_router_and_no_inner_activations(build):
    model, *_ = build("encoder decoder", mlp=Mlp(experts=Experts(5)))
    found = inspection.sites(model, batch=3, length=4, source_length=6)
    layers = [f"{role}/{layer}" for role in ("encoder", "decoder") for layer in (0, 1)]
    expected = [f"{layer}/mlp/{site}" for layer in layers for site in ("router", "outer")]
    assert [name for name in found if "/mlp/" in name] == expected
    assert found["encoder/1/mlp/router"] == ("BTN", (3, 6, 5), jnp.float32)
    assert "decoder/*/mlp/inner" not in inspection.tap_names("transformer_lens", model.config)


def test_a_parallel_block_has_the_sites_of_any_other(build):
    model, *_ = build("decoder", parallel=True)
    assert list(inspection.sites(model)) == [*expected_names("decoder", 2, False, False, True), "logits"]


def test_the_source_is_as_long_as_the_tokens_unless_told(build):
    model, *_ = build("encoder decoder")
    assert inspection.sites(model, length=4)["decoder/0/cross/pattern"].shape == (1, 4, 4, 4)


def test_a_model_of_175_billion_parameters_is_read_without_allocating():
    stack = Stack(depth=96, attention=Attention(heads=96))
    model = Transformer(ModelConfig(vocab=50257, width=12288, length=2048, decoder=stack, dtype="bfloat16"))
    found = inspection.sites(model, batch=1, length=2048)
    assert found["decoder/95/pattern"] == ("BHTS", (1, 96, 2048, 2048), jnp.float32)
    assert found["decoder/95/value"] == ("BSGK", (1, 2048, 96, 128), jnp.bfloat16)
