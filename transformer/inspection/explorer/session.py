"""What a served page may ask of a model: other texts, the exact numbers of a layer, and what an intervention does."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable

from transformer.inspection.explorer.details import details
from transformer.inspection.explorer.intervene import Change, intervene
from transformer.inspection.explorer.look import look
from transformer.inspection.explorer.packing import Json
from transformer.inspection.explorer.payload import TEXTS, TOKENS, Choice, describe
from transformer.inspection.explorer.reading import Reading, beginning
from transformer.inspection.explorer.subject import Subject

CHARACTERS = 4000  # of one text
CHANGES = 64  # of one intervention
KEPT = 16  # texts
MISSING = object()

Read = Callable[[str, str | None], Reading]  # a text and, for an encoder-decoder, its source


class Session:
    """A model that answers requests, each a JSON object; it remembers how the last texts were read, and what was seen.

    Args:
      read: from a text, and the source where there is one, to what the model reads; ValueError if it cannot.
      choice: of layers and bytes, for every page.
    """

    def __init__(self, subject: Subject, read: Read, choice: Choice = Choice()):  # noqa: B008
        self._subject, self._read, self._choice = subject, read, choice
        self._look = functools.lru_cache(2 * TEXTS)(look)
        self._readings: OrderedDict[tuple[str, str | None], Reading] = OrderedDict()

    @property
    def actions(self) -> dict[str, Callable[[Json], Json]]:
        """The requests by name."""
        return {"texts": self.texts, "detail": self.detail, "intervene": self.intervene}

    def texts(self, request: Json) -> Json:
        """`describe` of the request's `texts`, and, for an encoder-decoder, as many `sources`."""
        texts, sources = _field(request, "texts", list), _field(request, "sources", list, None)
        if not 0 < len(texts) <= TEXTS:
            raise ValueError(f"texts has {len(texts)} entries: give 1 to {TEXTS}")
        sources = [None] * len(texts) if sources is None else sources
        if len(sources) != len(texts):
            raise ValueError(f"sources has {len(sources)} entries for {len(texts)} texts: give as many")
        return self.page([self.reading(text, source) for text, source in zip(texts, sources, strict=True)])

    def page(self, readings: list[Reading]) -> Json:
        """`describe` of these readings, which are remembered by their texts."""
        title = beginning(readings[0].text or readings[0].source_text or self._subject.origin, 80)
        data = describe(self._subject, readings, title=title, choice=self._choice, look=self._look)
        for reading in readings:
            self._remember((reading.text, reading.source_text), reading)
        return data

    def detail(self, request: Json) -> Json:
        """The exact numbers of one `layer` of one `attention` for a `text`, with the `names` of its tokens."""
        reading = self._of(request, "text", "source")
        named = {attention.name: attention for attention in self._subject.attentions}
        attention, layer = named.get(_field(request, "attention", str)), _field(request, "layer", int)
        if attention is None or not 0 <= layer < attention.stack(self._subject.config).depth:
            raise ValueError(f"attention={request['attention']!r}, layer={layer}: the model has no such layer")
        found, ids = details(self._subject, reading, {attention: (layer,)})
        return {**found[attention.name][str(layer)], "names": self._subject.names(ids)}

    def intervene(self, request: Json) -> Json:
        """The next token before and after the request's `patches` at heads of a `text`; see `intervene`."""
        patches = _field(request, "patches", list)
        if len(patches) > CHANGES:
            raise ValueError(f"patches has {len(patches)} entries: give at most {CHANGES}")
        position = _field(request, "position", int, -1)
        return intervene(self._subject, self._of(request, "text", "source"), list(map(self._change, patches)), position)

    def reading(self, text: str, source: str | None = None) -> Reading:
        """What the model reads of a text; errors as of `read`, and if a text is too long."""
        for name, value in (("text", text), ("source", source)):
            if not isinstance(value, str) and not (name == "source" and value is None):
                raise ValueError(f"{name} must be a string, not {type(value).__name__}")
            if value is not None and len(value) > CHARACTERS:
                raise ValueError(f"{name} has {len(value)} characters: give at most {CHARACTERS}")
        if (text, source) not in self._readings:
            reading = self._read(text, source)
            reading.check(self._subject.config, TOKENS)
            self._remember((text, source), reading)
        return self._readings[text, source]

    def _change(self, patch: Json) -> Change:
        if not isinstance(patch, dict):
            raise ValueError(f"patches must be objects, not {type(patch).__name__}")
        action = _field(patch, "action", str)
        return Change(
            _field(patch, "attention", str),
            _field(patch, "layer", int),
            action,
            _field(patch, "head", int, None),
            _field(patch, "position", int, None),
            _number(patch, "value") if action == "scale" else 0.0,
            self._of(patch, "other", "other_source") if action == "patch" else None,
        )

    def _of(self, request: Json, text: str, source: str) -> Reading:
        return self.reading(_field(request, text, str), _field(request, source, str, None))

    def _remember(self, key: tuple[str, str | None], reading: Reading) -> None:
        self._readings[key] = reading
        self._readings.move_to_end(key)
        while len(self._readings) > KEPT:
            self._readings.popitem(last=False)


def _number(request: Json, name: str) -> float:
    try:
        return float(_field(request, name, (int, float)))
    except OverflowError:
        raise ValueError(f"{name} must be a number of ordinary size") from None


def _field(request: Json, name: str, kind: type | tuple[type, ...], default: object = MISSING):
    """A field of a request, of this kind; one that is null or left out is the default, where there is one."""
    value = request.get(name)
    if value is None and default is not MISSING:
        return default
    if not isinstance(value, kind) or isinstance(value, bool):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        wanted = " or ".join(one.__name__ for one in kinds)
        raise ValueError(f"{name} must be of kind {wanted}, not {type(value).__name__}")
    return value
