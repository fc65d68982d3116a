"""One text through one model: every number of it that the page may show, on the host."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from transformer.inspection import patterns
from transformer.inspection.explorer import forward, heads
from transformer.inspection.explorer.attentions import Attention, Layers
from transformer.inspection.explorer.packing import Json, pack, pack_bits
from transformer.inspection.explorer.reading import Reading
from transformer.inspection.explorer.subject import Subject
from transformer.models.ledger import ledger

LIKELY, BINS, LENS = 48, 16, 3
NAMED = 512  # of a whole row of logits
WHOLE = 200_000  # bytes of logits up to which every position's are kept whole
OPERATIONS = 1.5e13  # that silencing the heads may take in one text: less than a minute on two cores


@dataclasses.dataclass(frozen=True)
class Look:
    """What one text shows, without padding.

    Attributes:
      layers: those of each attention whose patterns were read.
      patterns: `[layers, H, T, S]` bytes.
      visible: `[period, T, S]` booleans.
      scores: by name `[layers, H]`; NaN where a score is not defined.
      effects: `[layers, H]` nats; empty if it would have taken too long.
      residuals: by role `[L + 1, T, D]` float32.
      overview: as the model gave it, with padding.
    """

    subject: Subject
    reading: Reading
    layers: Layers
    patterns: dict[Attention, np.ndarray]
    visible: dict[Attention, np.ndarray]
    scores: dict[Attention, dict[str, np.ndarray]]
    effects: dict[Attention, np.ndarray]
    residuals: dict[str, np.ndarray]
    overview: forward.Overview

    @property
    def lengths(self) -> dict[str, int]:
        """Tokens by role."""
        return {role: len(ids) for role, ids in self.reading.sides(self.subject.config).items()}

    def cells(self, attention: Attention, layer: int) -> np.ndarray:
        """The visible weights of one layer in bytes, head by head and row by row."""
        visible = self.visible[attention]
        pattern = self.patterns[attention][self.layers[attention].index(layer)]
        return pattern[:, visible[layer % len(visible)]].ravel()


def look(subject: Subject, reading: Reading, chosen: tuple[tuple[Attention, tuple[int, ...]], ...]) -> Look:
    """Run the model on one text, for the patterns of these layers of each attention."""
    layers = dict(chosen)
    config, inputs = subject.config, reading.inputs(subject.config)
    seen = forward.overview(subject.model, subject.params, inputs, layers)
    lengths = {role: len(ids) for role, ids in reading.sides(config).items()}
    crop = {a: np.asarray(seen.patterns[a.name])[:, 0, :, : lengths[a.role], : lengths[a.keys]] for a in layers}
    residuals = {role: np.asarray(array, np.float32)[:, 0, : lengths[role]] for role, array in seen.residuals.items()}
    return Look(
        subject,
        reading,
        layers,
        crop,
        {a: a.visible(config, lengths[a.role], lengths[a.keys]) for a in layers},
        _scores(subject, inputs, layers),
        _effects(subject, reading, inputs, seen.features, layers),
        residuals,
        seen,
    )


def _scores(subject: Subject, inputs: dict, layers: Layers) -> dict[Attention, dict[str, np.ndarray]]:
    found = jax.device_get(patterns.scores(subject.model, subject.params, **inputs))
    out = {}
    for attention, chosen in layers.items():
        depth, count = attention.stack(subject.config).depth, attention.sizes(subject.config)[0]
        undefined = np.full((depth, count), np.nan, np.float32)
        scores = found[attention.name]
        out[attention] = {name: scores.get(name, undefined)[list(chosen)] for name in patterns.SCORES}
    return out


def _effects(
    subject: Subject, reading: Reading, inputs: dict, features: jax.Array, layers: Layers
) -> dict[Attention, np.ndarray]:
    runs = sum(len(chosen) * attention.sizes(subject.config)[0] for attention, chosen in layers.items())
    longest = max(map(len, reading.sides(subject.config).values()))
    if runs * longest * ledger(subject.config).flops_per_token(longest).forward > OPERATIONS:
        return {}
    return heads.silence(subject.model, subject.params, inputs, features, reading.place, layers)


def side(seen: Look, role: str) -> Json:
    """The tokens of one stack, and how long its residuals are."""
    ids = seen.reading.sides(seen.subject.config)[role]
    return {
        "tokens": [_token(seen.subject, token) for token in ids],
        "norms": pack(np.linalg.norm(seen.residuals[role], axis=-1), "f32"),
    }


def _token(subject: Subject, token: int) -> Json:
    shown = subject.spell(token)
    optional = {"hex": shown.hex, "special": shown.special}
    return {"id": int(token), "text": shown.text, **{name: value for name, value in optional.items() if value}}


def attention_json(seen: Look, attention: Attention, layers: Sequence[int]) -> Json:
    """What is known of an attention in some of its layers, besides its patterns."""
    config, stack = seen.subject.config, attention.stack(seen.subject.config)
    count, groups, width = attention.sizes(config)
    scale, rows = stack.attention.scale, [seen.layers[attention].index(layer) for layer in layers]
    effects = seen.effects.get(attention)
    return {
        "name": attention.name,
        "stack": attention.role,
        "queries": attention.role,
        "keys": attention.keys,
        "layers": list(layers),
        "heads": count,
        "kv_heads": groups,
        "head_width": width,
        "scale": width**-0.5 if scale is None else scale,
        "softcap": stack.attention.softcap,
        "periods": len(seen.visible[attention]),
        "visible": pack_bits(seen.visible[attention]),
        "scores": {name: pack(array[rows], "f32") for name, array in seen.scores[attention].items()},
        "ablation": None if effects is None else pack(effects[rows], "f32"),
        "detail": {},
    }


def next_json(seen: Look) -> tuple[Json, set[int]]:
    """The next token's logits at every position, and the ids to name."""
    subject, place = seen.subject, seen.reading.place
    config, length = subject.config, seen.lengths[subject.side]
    count = min(LIKELY, config.vocab - 1)
    features = seen.overview.features
    read = forward.next_tokens(subject.model, subject.params, features, length, count=count, bins=BINS)
    whole = range(length) if 4 * length * config.vocab <= WHOLE else sorted({place, length - 1})
    rows = {t: np.asarray(forward.logits_at(subject.params, features, t, model=subject.model)) for t in whole}
    named = {int(token) for row in rows.values() for token in np.argsort(-row)[:NAMED]}
    return {
        "side": subject.side,
        "positions": list(range(length)),
        "all": {str(t): pack(row, "f32") for t, row in rows.items()},
        "top": {
            "ids": pack(read.ids, "i32"),
            "logits": pack(read.logits, "f32"),
            "tail": pack(read.tail, "f32"),
            "log_sum_exp": pack(read.log_sum_exp, "f32"),
        },
    }, named | set(read.ids.ravel().tolist())


def lens_json(seen: Look) -> tuple[Json, set[int]]:
    """The likeliest tokens after each layer, and the ids to name."""
    subject = seen.subject
    count = min(LENS, subject.config.vocab)
    read = forward.lens(subject.params, seen.overview.residuals[subject.side], model=subject.model, count=count)
    ids, probabilities = (np.asarray(array)[:, : seen.lengths[subject.side]] for array in read)
    packed = {"side": subject.side, "ids": pack(ids, "i32"), "probabilities": pack(probabilities, "f32")}
    return packed, set(ids.ravel().tolist())
