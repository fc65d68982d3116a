"""Everything that the page shows of a model on one to three texts, as JSON values within a budget of bytes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from transformer.inspection.explorer import details
from transformer.inspection.explorer.attentions import Attention, Layers
from transformer.inspection.explorer.look import Look, attention_json, lens_json, look, next_json, side
from transformer.inspection.explorer.packing import Json, pack, size
from transformer.inspection.explorer.reading import Reading
from transformer.inspection.explorer.subject import Subject

VERSION = 1
TEXTS, TOKENS = 3, 512  # at most
BUDGET = 3_800_000  # bytes; with the program beside it a page of less than 4 MB


@dataclasses.dataclass(frozen=True)
class Choice:
    """What to keep.

    Attributes:
      layers: whose patterns, in each stack; None: of as many as fit, well spread.
      detail: of which layers exact queries, keys and values; None: of as many as fit, those first whose heads matter
        most to the prediction.
      budget: bytes that the page's data may take.
    """

    layers: tuple[int, ...] | None = None
    detail: tuple[int, ...] | None = None
    budget: int = BUDGET


class Room:
    """What is left of the budget, and what had to be left out for it."""

    def __init__(self, budget: int):
        self.left = budget
        self.limits: list[str] = []

    def take(self, part: Json | int) -> bool:
        """Whether a part, or so many bytes, still fits; if so it is counted."""
        cost = part if isinstance(part, int) else size(part)
        fits = cost <= self.left
        self.left -= cost if fits else 0
        return fits

    def leave_out(self, said: str, flag: str | None) -> None:
        """Say what is missing, and how to get it."""
        choose = f"choose others with {flag}=…, or " if flag else ""
        self.limits.append(f"{said}: {choose}give more bytes with --budget=…")


def describe(
    subject: Subject,
    readings: Sequence[Reading],
    *,
    title: str,
    choice: Choice = Choice(),
    look: Callable[..., Look] = look,
) -> Json:
    """What `page` shows.

    Args:
      look: `explorer.look.look`, or what remembers its results.

    Raises:
      ValueError: if there are too many texts, one is too long, a layer is chosen that the model lacks, or the budget
        is too small for anything.
    """
    if not 0 < len(readings) <= TEXTS:
        raise ValueError(f"{len(readings)} texts were given: the explorer compares 1 to {TEXTS}")
    for reading in readings:
        reading.check(subject.config, TOKENS)
    layers = _layers(subject, "layers", choice.layers)
    chosen = None if choice.detail is None else _layers(subject, "detail", choice.detail)
    looks = [look(subject, reading, tuple(layers.items())) for reading in readings]
    data = {
        "version": VERSION,
        "title": title,
        "origin": subject.origin,
        "model": subject.model_json(),
        "ledger": subject.ledger_json(),
        "served": None,
        "texts": [_text(seen) for seen in looks],
        "similarity": [],
    }
    room = Room(choice.budget)
    if not room.take(data):
        raise ValueError(f"budget={choice.budget} bytes: these texts need {size(data)} before any pattern; give more")
    for number, seen in enumerate(looks, 1):
        if not seen.effects:
            which = f" in text {number}" if len(looks) > 1 else ""
            room.limits.append(f"The effect of silencing heads{which} is left out: it would take minutes.")
    _patterns(data["texts"], looks, room)
    if chosen is not None:
        _details(data["texts"], looks, chosen, room)
    _similarity(data["similarity"], looks, room, own=False)
    if chosen is None:
        _details(data["texts"], looks, {a: _by_effect(looks, a) for a in layers}, room)
    _similarity(data["similarity"], looks, room, own=True)
    return {**data, "limits": room.limits}


def _layers(subject: Subject, argument: str, chosen: tuple[int, ...] | None) -> Layers:
    """The chosen layers of each attention; those that a shallower stack lacks are left out of it."""
    depths = {attention: attention.stack(subject.config).depth for attention in subject.attentions}
    if chosen is None:
        return {attention: tuple(range(depth)) for attention, depth in depths.items()}
    deepest = max(depths.values())
    wrong = [layer for layer in chosen if not 0 <= layer < deepest]
    if wrong or not chosen:
        raise ValueError(f"{argument}={chosen} cannot work: choose among layers 0 to {deepest - 1}")
    found = {a: tuple(sorted({layer for layer in chosen if layer < depth})) for a, depth in depths.items()}
    for attention, layers in found.items():
        if not layers:
            raise ValueError(
                f"{argument}={chosen} has no layer of the {attention.role}: add one below {depths[attention]}"
            )
    return found


def _text(seen: Look) -> Json:
    """One text without its patterns, queries, keys and values."""
    reading, subject = seen.reading, seen.subject
    following, named = next_json(seen)
    lens, also = lens_json(seen)
    source = {} if reading.source_text is None else {"source": reading.source_text}
    return {
        "text": reading.text,
        **source,
        "position": reading.place,
        "sides": {role: side(seen, role) for role in seen.lengths},
        "attentions": [attention_json(seen, attention, layers) for attention, layers in seen.layers.items()],
        "next": {**following, "names": subject.names(named | also)},
        "lens": lens,
    }


def spread(layers: Sequence[int], count: int) -> list[int]:
    """At most so many of these layers, the first and the last among them, at about equal distances; one: the last."""
    if count >= len(layers):
        return list(layers)
    places = np.linspace(0, len(layers) - 1, count) if count > 1 else [len(layers) - 1]
    return [layers[round(place)] for place in places]


def _patterns(texts: list[Json], looks: list[Look], room: Room) -> None:
    """Patterns of as many of the layers as fit, the same ones of every text."""
    layers = looks[0].layers
    sizes = {
        (attention, layer): sum(size(pack(seen.cells(attention, layer), "u8")) for seen in looks)
        for attention, chosen in layers.items()
        for layer in chosen
    }
    for count in range(max(map(len, layers.values())), 0, -1):
        kept = {attention: spread(chosen, count) for attention, chosen in layers.items()}
        if room.take(sum(sizes[attention, layer] for attention, chosen in kept.items() for layer in chosen)):
            break
    else:
        raise ValueError(
            f"budget: {room.left} bytes are left for patterns, and one layer of each takes more; give more"
        )
    for text, seen in zip(texts, looks, strict=True):
        text["attentions"] = [attention_json(seen, attention, chosen) for attention, chosen in kept.items()]
        for part, (attention, chosen) in zip(text["attentions"], kept.items(), strict=True):
            cells = [seen.cells(attention, layer) for layer in chosen]
            part["pattern"] = pack(np.concatenate(cells) if cells else np.zeros(0), "u8")
    for attention, chosen in kept.items():
        if len(chosen) < len(layers[attention]):
            room.leave_out(f"Patterns are kept for {_named(attention, chosen)}", "--layers")


def _details(texts: list[Json], looks: list[Look], layers: dict[Attention, Sequence[int]], room: Room) -> None:
    """Exact numbers of as many layers as fit, the first ones of each attention before the others."""
    kept: list[dict[Attention, list[int]]] = [{} for _ in looks]
    costs = {(i, a): details.most_bytes(seen, a) for i, seen in enumerate(looks) for a in layers}
    for rank in range(max(map(len, layers.values()))):
        for attention, i in ((a, i) for a, chosen in layers.items() if rank < len(chosen) for i in range(len(looks))):
            if room.take(costs[i, attention]):
                kept[i].setdefault(attention, []).append(layers[attention][rank])
    for text, seen, some in zip(texts, looks, kept, strict=True):
        chosen = {attention: tuple(sorted(numbers)) for attention, numbers in some.items()}
        found, named = details.details(seen.subject, seen.reading, chosen) if chosen else ({}, ())
        for part in text["attentions"]:
            part["detail"] = found.get(part["name"], {})
        text["next"]["names"] |= seen.subject.names(named)
    for i, attention in costs:
        chosen = sorted(kept[i].get(attention, []))
        if len(chosen) < len(layers[attention]):
            which = f" of text {i + 1}" if len(looks) > 1 else ""
            where = _named(attention, chosen) if chosen else f"no layer of {attention.name}"
            room.leave_out(f"Exact queries, keys and values{which} are kept for {where}", "--detail")


def _similarity(pairs: list[Json], looks: list[Look], room: Room, own: bool) -> None:
    """Cosines of the residuals of two texts, or of one text with itself."""
    count = len(looks)
    wanted = [(i, i) for i in range(count)] if own else [(i, j) for i in range(count) for j in range(i + 1, count)]
    for (i, j), role in ((pair, role) for pair in wanted for role in looks[0].residuals):
        first, second = (unit(looks[k].residuals[role]) for k in (i, j))
        cosines = np.clip(np.einsum("LTD,LSD->LTS", first, second), -1, 1)
        part = {"a": i, "b": j, "side": role, "cosines": pack(np.round((cosines + 1) / 2 * 65535), "u16")}
        if room.take(part):
            pairs.append(part)
        else:
            which = f"text {i + 1}" if i == j else f"texts {i + 1} and {j + 1}"
            room.leave_out(f"How alike the tokens of {which} are in the {role} is left out", None)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors `[..., D]` of length 1; one of length 0 stays."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-30)


def _named(attention: Attention, layers: Sequence[int]) -> str:
    return f"{'layers' if len(layers) > 1 else 'layer'} {', '.join(map(str, layers))} of {attention.name}"


def _by_effect(looks: list[Look], attention: Attention) -> list[int]:
    """The layers of an attention, those first whose heads change the predictions most when silenced."""
    layers, measured = looks[0].layers[attention], [seen.effects[attention] for seen in looks if seen.effects]
    if not measured:
        return list(reversed(layers))
    total = sum(effects.sum(axis=1) for effects in measured)
    return [layers[index] for index in np.argsort(-total, kind="stable")]
