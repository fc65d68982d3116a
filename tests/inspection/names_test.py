from __future__ import annotations

import numpy as np
import pytest

from transformer import inspection, models
from transformer.models import Position

# What TransformerLens's own test of GPT-2-like caches lists, where we have the same array.
GPT2 = """
hook_embed hook_pos_embed hook_resid_pre attn.hook_q attn.hook_k attn.hook_v attn.hook_attn_scores attn.hook_pattern
attn.hook_z hook_attn_out hook_resid_mid mlp.hook_post hook_mlp_out hook_resid_post unembed.hook_out
"""


def test_captures_come_under_their_names(build):
    model, params, tokens, _ = build("decoder", position=Position(kind="learned"))
    _, taps = inspection.run(model, params, tokens, capture="**")
    cache = inspection.tap_names("transformer_lens").rename(taps)
    lone = {"hook_embed", "hook_pos_embed", "unembed.hook_out"}
    for name in GPT2.split():
        assert name in cache if name in lone else {f"blocks.{layer}.{name}" for layer in (0, 1)} <= set(cache), name
    np.testing.assert_array_equal(cache["blocks.1.attn.hook_pattern"], taps["decoder/1/pattern"])
    np.testing.assert_array_equal(cache["blocks.0.hook_attn_out"], taps["decoder/0/output"])
    assert len(cache) == len(taps)


@pytest.mark.parametrize("name", ["gpt2-small", "llama2-7b", "gemma2-2b", "pythia-70m", "bert-base", "t5-small"])
def test_names_and_sites_are_one_to_one_and_every_site_exists(name):
    config = models.get(name)
    names = inspection.tap_names("transformer_lens", config)
    sites = inspection.sites(models.Transformer(config), length=2)
    starred = {inspection.Patch(site).site for site in sites}
    for site in names:
        numbered = site.replace("*", "0")
        assert numbered in starred or numbered.endswith("/positions"), site
        assert names.site(names[site]) == site and names.site(names[numbered]) == numbered


@pytest.mark.parametrize(
    "name, site, expected",
    [
        ("gpt2-small", "decoder/11/query", "blocks.11.attn.hook_q"),
        ("llama2-7b", "decoder/*/query", "blocks.*.attn.hook_rot_q"),  # ours has been turned
        ("llama2-7b", "decoder/3/residual_mid", "blocks.3.hook_resid_mid"),
        ("gemma2-2b", "decoder/3/output", "blocks.3.attn.hook_out"),  # theirs comes after the norm that follows
        ("pythia-70m", "decoder/3/residual_mid", None),  # a parallel block has none
        ("bert-base", "encoder/2/pattern", "blocks.2.attn.hook_pattern"),
        ("bert-base", "encoder/2/residual_mid", None),  # theirs comes before the norm
        ("bert-base", "encoder/embedding", None),  # ours has the token types in it
        ("bert-base", "encoder/2/output", None),  # theirs has the residual in it
        ("gemma2-2b", "logits", None),  # theirs are not capped
        ("llama2-7b", "logits", "unembed.hook_out"),
        ("t5-small", "encoder/2/pattern", "encoder_blocks.2.attn.hook_pattern"),
        ("t5-small", "decoder/2/pattern", "decoder_blocks.2.self_attn.hook_pattern"),
        ("t5-small", "decoder/2/cross/mixed", "decoder_blocks.2.cross_attn.hook_z"),
        ("t5-small", "decoder/2/residual_cross", "decoder_blocks.2.hook_resid_mid2"),
        ("t5-small", "decoder/final_norm", "decoder_ln_final.hook_out"),
    ],
)
def test_families_differ(name, site, expected):
    assert inspection.tap_names("transformer_lens", models.get(name)).get(site) == expected


def test_their_names_choose_captures_and_unnamed_sites_keep_ours(build):
    model, params, tokens, arguments = build("encoder and decoder")
    names = inspection.tap_names("transformer_lens", model.config)
    capture = (names.site("decoder_blocks.*.cross_attn.hook_pattern"), "decoder/embedding")
    _, taps = inspection.run(model, params, tokens, capture=capture, **arguments)
    expected = ["decoder/embedding", *(f"decoder_blocks.{layer}.cross_attn.hook_pattern" for layer in (0, 1))]
    assert list(names.rename(taps)) == expected


def test_mistakes_name_what_is_near():
    names = inspection.tap_names("transformer_lens")
    with pytest.raises(
        ValueError, match=r"no site goes by 'blocks.0.attn.hook_patern'; .*blocks\.\*\.attn\.hook_pattern"
    ):
        names.site("blocks.0.attn.hook_patern")
    with pytest.raises(ValueError, match="convention='baukit' is unknown; choose one of transformer_lens"):
        inspection.tap_names("baukit")
