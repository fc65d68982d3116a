"""The exact numbers of some layers: queries, keys, values, and what each head writes."""

from __future__ import annotations

import jax

from transformer.inspection.explorer import heads
from transformer.inspection.explorer.attentions import Attention, Layers
from transformer.inspection.explorer.look import Look
from transformer.inspection.explorer.packing import Json, pack, size
from transformer.inspection.explorer.reading import Reading
from transformer.inspection.explorer.subject import Subject

NAME = 28  # bytes that a token's name may take on average


def details(subject: Subject, reading: Reading, layers: Layers) -> tuple[dict[str, dict[str, Json]], set[int]]:
    """By name of an attention and layer its numbers as JSON, and the ids to name."""
    sides = reading.sides(subject.config)
    chosen = tuple((attention, tuple(some)) for attention, some in layers.items())
    read = heads.detail(subject.params, reading.inputs(subject.config), model=subject.model, layers=chosen)
    found, named = {}, set()
    for attention, some in chosen:
        queries, keys = len(sides[attention.role]), len(sides[attention.keys])
        bias = packed_bias(subject, attention, queries, keys)
        found[attention.name] = {}
        for layer in some:
            one, promotes = jax.device_get(read[attention.name][layer]), None
            if one.ids is not None:
                promotes = {"ids": pack(one.ids[:queries], "i32"), "values": pack(one.values[:queries], "f32")}
                named |= set(one.ids[:queries].ravel().tolist())
            found[attention.name][str(layer)] = {
                "query": pack(one.query[:queries], "f32"),
                "key": pack(one.key[:keys], "f32"),
                "value": pack(one.value[:keys], "f32"),
                "bias": bias,
                "output_norm": pack(one.length[:queries], "f32"),
                "cosine": pack(one.cosine[:queries], "f32"),
                "promotes": promotes,
            }
    return found, named


def packed_bias(subject: Subject, attention: Attention, queries: int, keys: int) -> Json | None:
    """What is added to scores, the same in every layer."""
    bias = attention.bias(subject.config, subject.params, queries, keys)
    return None if bias is None else pack(bias, "f32")


def most_bytes(seen: Look, attention: Attention) -> int:
    """How many bytes one layer takes at most, its tokens' names included."""
    config = seen.subject.config
    count, groups, width = attention.sizes(config)
    queries, keys = seen.lengths[attention.role], seen.lengths[attention.keys]
    numbers = queries * count * (width + 2) + 2 * keys * groups * width
    names = 0
    if heads.direct(config, attention):
        numbers += 4 * heads.SIDES * queries * count
        names = NAME * min(config.vocab, 2 * heads.SIDES * queries * count)
    return 4 * numbers * 4 // 3 + names + size(packed_bias(seen.subject, attention, queries, keys)) + 1000
