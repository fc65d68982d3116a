"""Counts against what the models' authors published, and against the shapes of the model itself."""

import dataclasses
import math

import numpy as np
import pytest

from transformer import models
from transformer.models.ledger import shapes

# Of the published weights (BERT with its pooler and without its pre-training heads).
PUBLISHED = {
    "gpt2-small": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "bert-base": 109_482_240,
    "bert-large": 335_141_888,
    "t5-small": 60_506_624,
    "t5-base": 222_903_552,
    "t5-large": 737_668_096,
    "t5-3b": 2_851_598_336,
    "t5-11b": 11_307_321_344,
    "t5-v1.1-small": 76_961_152,
    "t5-v1.1-base": 247_577_856,
    "t5-v1.1-large": 783_150_080,
    "t5-v1.1-xl": 2_849_757_184,
    "t5-v1.1-xxl": 11_135_332_352,
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "llama2-70b": 68_976_648_192,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "mistral-7b": 7_241_732_096,
    "mixtral-8x7b": 46_702_792_704,
    "mixtral-8x22b": 140_620_634_112,
    "qwen2-0.5b": 494_032_768,
    "qwen2-1.5b": 1_543_714_304,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "gemma-2b": 2_506_172_416,
    "gemma2-2b": 2_614_341_888,
    "gemma2-9b": 9_241_705_984,
    "gemma2-27b": 27_227_128_320,
    "llama3.2-1b": 1_235_814_400,
    "llama3.2-3b": 3_212_749_824,
    "minilm-l6": 22_713_216,
    "pythia-70m": 70_426_624,
    "pythia-160m": 162_322_944,
    "pythia-410m": 405_334_016,
    "pythia-1b": 1_011_781_632,
    "pythia-1.4b": 1_414_647_808,
    "pythia-2.8b": 2_775_208_960,
    "pythia-6.9b": 6_857_302_016,
    "pythia-12b": 11_846_072_320,
    # Less the two rows of positions that no token reads.
    "roberta-base": 124_645_632,
    "roberta-large": 355_359_744,
}
# As printed without embedding and read-out: Biderman et al. 2023, table 1, and the report on Gemma 2, table 2.
BETWEEN = {
    "pythia-70m": 18_915_328,
    "pythia-160m": 85_056_000,
    "pythia-410m": 302_311_424,
    "pythia-1b": 805_736_448,
    "pythia-1.4b": 1_208_602_624,
    "pythia-2.8b": 2_517_652_480,
    "pythia-6.9b": 6_444_163_072,
    "pythia-12b": 11_327_027_200,
    "gemma2-2b": 2_024_517_888,
    "gemma2-9b": 8_324_201_984,
    "gemma2-27b": 26_047_480_320,
}
# In units of the last digit that the paper prints (Vaswani et al., table 3, and Brown et al., table 2.1), which rounds.
ROUNDED = {
    "transformer-base": (65e6, 2e6),
    "transformer-big": (213e6, 2e6),
    "gpt3-125m": (125e6, 1e6),
    "gpt3-350m": (356e6, 1e6),
    "gpt3-760m": (760e6, 1e6),
    "gpt3-2.7b": (2.65e9, 1e7),
    "gpt3-6.7b": (6.66e9, 1e7),
    "gpt3-13b": (12.85e9, 1e8),
    "gpt3-175b": (174.6e9, 1e8),
}


@pytest.mark.parametrize(("name", "count"), PUBLISHED.items())
def test_totals_are_the_published_ones(name, count):
    assert models.ledger(models.get(name)).total == count


@pytest.mark.parametrize(("name", "count"), BETWEEN.items())
def test_what_is_between_embedding_and_read_out_is_the_published_count(name, count):
    rows = models.ledger(models.get(name)).rows
    assert sum(row.count for row in rows if row.part not in ("embedding/table", "readout/kernel")) == count


@pytest.mark.parametrize(("name", "count", "tolerance"), [(name, *pair) for name, pair in ROUNDED.items()])
def test_totals_are_near_the_printed_ones(name, count, tolerance):
    assert models.ledger(models.get(name)).total == pytest.approx(count, abs=tolerance)


def sizes(config):
    return {path: math.prod(shape) for path, shape in shapes(config).items()}


@pytest.mark.parametrize("name", models.names())
def test_formulas_agree_with_the_shapes_row_by_row(name):
    config = models.get(name)
    assert {row.part: row.count for row in models.ledger(config).rows} == sizes(config)


VARIANTS = {
    "attention only": lambda c: change(c, decoder=dict(mlp=None)),
    "post-norm": lambda c: change(c, decoder=dict(norm_placement="post", embedding_norm=True)),
    "both norms": lambda c: change(c, decoder=dict(norm_placement="both"), encoder=dict(norm_placement="both")),
    "both norms, layer norm, attention only": lambda c: change(
        c, decoder=dict(norm_placement="both", norm=models.Norm("layer", bias=True), mlp=None)
    ),
    "parallel": lambda c: change(c, encoder=dict(parallel=True)),
    "attention biases": lambda c: change(
        c, decoder=dict(attention=models.Attention(4, 2, bias=True, output_bias=True))
    ),
    "query norms": lambda c: change(c, encoder=dict(attention=models.Attention(2, head_width=10, query_key_norm=True))),
    "stacks that differ": lambda c: change(c, encoder=dict(depth=3, mlp=models.Mlp(24, gated=False, bias=True))),
    "relative": lambda c: change(c, decoder=dict(position=models.Position("relative", buckets=16))),
    "learned, layer norm": lambda c: change(
        c, encoder=dict(position=models.Position("learned"), norm=models.Norm("layer", bias=True))
    ),
    "read-out": lambda c: dataclasses.replace(c, readout=models.Readout(tied=False, bias=True, transform=True)),
    "experts": lambda c: change(c, decoder=dict(mlp=models.Mlp(24, experts=models.Experts(5, 2)))),
    "experts with biases": lambda c: change(
        c, encoder=dict(mlp=models.Mlp(24, gated=False, bias=True, experts=models.Experts(3, 1)))
    ),
    "token types": lambda c: dataclasses.replace(c, token_types=3),
}


def change(config, **stacks):
    changed = {role: dataclasses.replace(getattr(config, role), **fields) for role, fields in stacks.items()}
    return dataclasses.replace(config, **changed)


@pytest.mark.parametrize("name", VARIANTS)
def test_formulas_agree_with_the_shapes_of_models_that_nobody_published(name):
    config = VARIANTS[name](models.get("tiny-both"))
    assert {row.part: row.count for row in models.ledger(config).rows} == sizes(config)
    assert models.ledger(config) != models.ledger(models.get("tiny-both"))


def test_the_tally_of_gpt3_has_the_digits_that_explainers_give():
    tally = models.ledger(models.get("gpt3-175b")).tally
    rows = {row.part: row for row in tally.rows}
    for name in ("query", "key", "value", "output"):
        assert rows[f"decoder/blocks/attention/{name}/kernel"].per_head == 1_572_864
    assert rows["decoder/blocks/attention/query/kernel"].formula == "L·D·H·K = 96 x 12,288 x 96 x 128"
    attention = tally.subtotal("attention")
    assert (attention.per_head, attention.per_block, attention.count) == (6_291_456, 603_979_776, 57_982_058_496)
    assert tally.subtotal("mlp").count == 115_964_116_992
    assert rows["embedding/table"].count == rows["readout/kernel"].count == 617_558_016
    assert tally.total == 175_181_291_520


@pytest.mark.parametrize("name", models.names())
def test_a_row_multiplies_out(name):
    """The numbers of a formula give the count, and blocks and heads give it too."""
    config = models.get(name)
    for row in models.ledger(config).rows:
        numbers = [int(number.replace(",", "")) for number in row.formula.split(" = ")[1].split(" x ")]
        assert np.prod(numbers, dtype=object) == row.count
        if row.per_block is not None:
            stack = getattr(config, row.part.split("/")[0])
            assert row.per_block * stack.depth == row.count
            if row.per_head is not None:
                keyed = row.part.split("/")[-2] in ("key", "value")
                assert row.per_head * (config.kv_heads(stack) if keyed else stack.attention.heads) == row.per_block


@pytest.mark.parametrize("name", ["gpt2-small", "llama2-7b", "t5-small", "bert-base"])
def test_the_tally_counts_the_unembedding_once_whether_tied_or_not(name):
    config = models.get(name)
    untied = dataclasses.replace(config, readout=dataclasses.replace(config.readout, tied=False))
    assert models.ledger(config).tally == dataclasses.replace(models.ledger(untied).tally, config=config)


def test_subtotals_add_up_and_unknown_parts_are_named():
    book = models.ledger(models.get("t5-small"))
    parts = [book.subtotal(path).count for path in ("embedding", "encoder", "decoder")]
    assert sum(parts) == book.total
    assert book.subtotal("attention").count == 2 * book.subtotal("decoder/blocks/attention").count
    with pytest.raises(ValueError, match=r"'attn'.*attention"):
        book.subtotal("attn")


def brute_force(config, length, causal):
    """Multiply-adds of one token on average, matrix by matrix and pair by pair."""
    book = models.ledger(config)
    count = config.vocab * config.width
    count += sum(row.count for row in book.rows if row.part.endswith("kernel") and row.part.split("/")[1] == "blocks")
    for role in ("encoder", "decoder"):
        stack = getattr(config, role)
        for layer in range(stack.depth if stack else 0):
            windows = stack.attention.windows or (0,)
            window = windows[layer % len(windows)] if causal else 0
            back = np.arange(length)[:, None] - np.arange(length)[None]
            met = (back >= 0) if causal and role == "decoder" else np.ones_like(back, bool)
            met &= (back < window) if window else True
            pairs = met.sum() + (length**2 if role == "decoder" and config.encoder else 0)
            count += 2 * stack.attention.heads * config.head_width(stack) * pairs / length
    return count


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [1, 7, 48])
@pytest.mark.parametrize("name", ["tiny-decoder", "tiny-encoder", "tiny-both", "windows"])
def test_operations_are_twice_the_multiply_adds_of_every_product(name, length, causal):
    if name == "windows":
        config = change(models.get("tiny-decoder"), decoder=dict(attention=models.Attention(4, windows=(0, 5))))
    else:
        config = models.get(name)
    flops = models.ledger(config).flops_per_token(length, causal=causal)
    assert flops.forward == pytest.approx(2 * brute_force(config, length, causal), rel=1e-12)
    assert flops.training == 3 * flops.forward


def test_operations_agree_with_what_gpt3_was_trained_with():
    """Brown et al. 2020, table D.1: 3.14e23 for 300 billion tokens, by 6 operations for each parameter."""
    flops = models.ledger(models.get("gpt3-175b")).flops_per_token(2048)
    assert flops.training * 300e9 == pytest.approx(3.14e23, rel=0.04)  # the table leaves attention scores out


def test_one_token_of_mixtral_uses_two_experts_of_eight():
    """12.9 billion of 46.7: https://mistral.ai/news/mixtral-of-experts; 13 and 47 in Jiang et al. 2024, section 1."""
    config = models.get("mixtral-8x7b")
    book = models.ledger(config)
    experts = 3 * 32 * 4096 * 14_336  # in one of eight
    assert book.active == book.total - 6 * experts == 12_879_925_248
    assert book.subtotal("router").active == book.subtotal("router").count == 32 * 4096 * 8
    assert book.subtotal("mlp/up").active == book.subtotal("mlp/up").count // 4
    matrices = book.tally.active - book.subtotal("embedding").count
    assert book.flops_per_token(7).forward == 2 * matrices + 4 * 32 * 32 * 128 * 7


@pytest.mark.parametrize("name", [name for name in models.names() if not name.startswith("mixtral")])
def test_without_experts_a_token_uses_every_parameter(name):
    book = models.ledger(models.get(name))
    assert book.active == book.total


def test_operations_need_a_token():
    with pytest.raises(ValueError, match="length=0"):
        models.ledger(models.get("tiny-decoder")).flops_per_token(0)
