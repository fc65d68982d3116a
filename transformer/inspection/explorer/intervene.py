"""What becomes of a next token when heads are silenced, scaled, or replaced by their selves in another text."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from transformer.inspection.explorer.attentions import Attention, attentions
from transformer.inspection.explorer.forward import logits_at
from transformer.inspection.explorer.packing import Json
from transformer.inspection.explorer.reading import Reading
from transformer.inspection.explorer.subject import Subject
from transformer.nn.tap import Patch, Tap

ACTIONS = ("zero", "scale", "patch")
LISTED = 12  # tokens


@dataclasses.dataclass(frozen=True)
class Change:
    """One change of what heads mix, before it is written to the residual.

    Attributes:
      attention: "encoder", "decoder" or "decoder/cross".
      layer: from 0.
      action: `zero`, `scale` by `value`, or `patch` with what the head has in `other`, position for position.
      head, position: from 0; None: all. Where `other` is shorter, the positions beyond its end stay as they are.
    """

    attention: str
    layer: int
    action: str
    head: int | None = None
    position: int | None = None
    value: float = 0.0
    other: Reading | None = None


def intervene(subject: Subject, reading: Reading, changes: Sequence[Change], position: int) -> Json:
    """The next token's probabilities at one position, before and after changes that are made in their order.

    Whatever the changes, texts of about one length share a compiled program.

    Args:
      position: whose prediction is compared; negative ones from the end.

    Returns:
      `before` and `after`, the `ids` and `probabilities` of the tokens that are likeliest in either; `names` of these;
      `rest_before` and `rest_after`, the probability of all others; `kl`, sum of before log(before / after) in nats.

    Raises:
      ValueError: if a change names what the model or the text lacks.
    """
    length = len(reading.tokens)
    if not -length <= position < length:
        raise ValueError(f"position={position} is out of range: the text has {length} tokens")
    run = functools.partial(_logits, subject.params, reading.inputs(subject.config), model=subject.model)
    before, after = (
        np.asarray(jax.nn.log_softmax(run(position % length, *changed)), np.float64)
        for changed in (_effects(subject, reading, ()), _effects(subject, reading, changes))
    )
    both = np.exp(before), np.exp(after)
    divergence = float(np.sum(both[0] * (before - after), where=both[0] > 0))
    if not np.isfinite(divergence):
        raise ValueError("the logits are not finite: the model, or a change to it, is out of its range")
    ids = np.argsort(-np.maximum(*both), kind="stable")[:LISTED]
    listed = [{"ids": ids.tolist(), "probabilities": part[ids].tolist()} for part in both]
    rests = [max(0.0, 1.0 - float(part[ids].sum())) for part in both]
    return {
        "before": listed[0],
        "after": listed[1],
        "names": subject.names(ids),
        "kl": max(0.0, divergence),
        "rest_before": rests[0],
        "rest_after": rests[1],
    }


def _effects(subject: Subject, reading: Reading, changes: Sequence[Change]) -> tuple[dict, dict]:
    """All changes of each attention as one: mixed values times `[L, 1, T, H, 1]` plus `[L, 1, T, H, K]`."""
    factors, offsets = _nothing(subject, reading)
    lengths = {role: len(ids) for role, ids in reading.sides(subject.config).items()}
    others: dict[Reading, dict[Attention, np.ndarray]] = {}
    for change in changes:
        attention = _find(subject, change, lengths)
        positions, heads = (slice(i, None if i is None else i + 1) for i in (change.position, change.head))
        if change.action == "patch":
            if change.other not in others:
                others[change.other] = _mixed(subject, change.other)
            found = others[change.other][attention]  # [L, T, H, K]
            end = min(lengths[attention.role], found.shape[1])
            if change.position is not None and change.position >= end:
                raise ValueError(f"position={change.position} is beyond the other text's {found.shape[1]} tokens")
            positions = slice(0, end) if change.position is None else positions
        place = (change.layer, 0, positions, heads)
        with np.errstate(over="ignore", invalid="ignore"):  # what is no number any more is found in the logits
            for array in (factors[change.attention], offsets[change.attention]):
                array[place] = array[place] * change.value if change.action == "scale" else 0.0
        if change.action == "patch":
            offsets[change.attention][place] = found[change.layer, positions, heads]
    return factors, offsets


def _nothing(subject: Subject, reading: Reading) -> tuple[dict, dict]:
    """The effects of no change."""
    config, inputs = subject.config, reading.inputs(subject.config)
    factors, offsets = {}, {}
    for attention in subject.attentions:
        heads, _, width = attention.sizes(config)
        ids = inputs["source" if attention.role == "encoder" and config.decoder is not None else "tokens"]
        shape = (attention.stack(config).depth, 1, ids.shape[1], heads)
        factors[attention.name] = np.ones((*shape, 1), np.float32)
        offsets[attention.name] = np.zeros((*shape, width), np.float32)
    return factors, offsets


def _find(subject: Subject, change: Change, lengths: dict[str, int]) -> Attention:
    """The attention that a change is for, if all it names is there."""
    named = {attention.name: attention for attention in subject.attentions}
    if change.attention not in named:
        raise ValueError(f"attention={change.attention!r} is none of this model's: choose {', '.join(named)}")
    if change.action not in ACTIONS:
        raise ValueError(f"action={change.action!r} is unknown: choose {', '.join(ACTIONS)}")
    if (change.action == "patch") != (change.other is not None):
        raise ValueError(f"action={change.action!r}: another text goes with 'patch', and with that alone")
    if not np.isfinite(change.value):
        raise ValueError(f"value={change.value} cannot scale: give a finite number")
    attention = named[change.attention]
    sizes = {
        "layer": attention.stack(subject.config).depth,
        "head": attention.sizes(subject.config)[0],
        "position": lengths[attention.role],
    }
    for name, size in sizes.items():
        index = getattr(change, name)
        if index is not None and not 0 <= index < size:
            raise ValueError(f"{name}={index} is out of range in {attention.name}: use 0 to {size - 1}")
    return attention


def _mixed(subject: Subject, reading: Reading) -> dict[Attention, np.ndarray]:
    """What every head mixes in a text: `[L, T, H, K]`."""
    found = _capture(subject.params, reading.inputs(subject.config), model=subject.model, of=tuple(subject.attentions))
    sides = reading.sides(subject.config)
    return {
        a: np.asarray(found[a.site("*", "mixed")], np.float32)[:, 0, : len(sides[a.role])] for a in subject.attentions
    }


@functools.partial(jax.jit, static_argnames=("model", "of"))
def _capture(params, inputs, *, model, of):
    depth = {attention: attention.stack(model.config).depth for attention in of}
    tap = Tap(attention.site(layer, "mixed") for attention in of for layer in range(depth[attention]))
    model.apply({"params": params}, **inputs, tap=tap, method="features")
    return tap.taps().stacked()


@functools.partial(jax.jit, static_argnames="model")
def _logits(params, inputs, position, factors, offsets, *, model):
    patches = []
    for attention in attentions(model.config):
        site = attention.site("*", "mixed")
        patches += [Patch(site, factors[attention.name], "scale"), Patch(site, offsets[attention.name], "add")]
    features, _ = model.apply({"params": params}, **inputs, tap=Tap(patches=patches), method="features")
    return logits_at(params, features, position, model=model).astype(jnp.float32)
