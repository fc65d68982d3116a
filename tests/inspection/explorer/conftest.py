"""Small models of every kind under the explorer, each described once; a browser; and a page that NumPy knows."""

from __future__ import annotations

import dataclasses
import functools
import os
import shutil
import types

import numpy as np
import pytest

from transformer.inspection import explorer
from transformer.inspection.explorer import Reading, Subject, Token
from transformer.inspection.explorer.packing import pack, pack_bits
from transformer.models.config import Attention, Position, Readout

KINDS = {  # what is asked of `build`, and the lengths of texts and sources
    "rotary": (("decoder",), {"norm_placement": "pre"}, [(5, None), (7, None)]),
    "both norms": (("encoder decoder",), {"norm_placement": "both"}, [(5, 7)]),
    "post-norm": (("encoder",), {"norm_placement": "post"}, [(5, None)]),
    "windows": (
        ("decoder", {"readout": Readout(scale=True, softcap=2.0)}),
        {"position": Position("alibi"), "attention": Attention(heads=4, windows=(2, 0), softcap=1.5, scale=0.7)},
        [(9, None)],
    ),
    "relative": (
        ("encoder decoder",),
        {"position": Position("relative", buckets=8, distance=9), "attention": Attention(heads=4, kv_heads=1)},
        [(6, 9)],
    ),
    "learned": (("decoder",), {"position": Position("learned"), "mlp": None}, [(12, None)]),
}


@dataclasses.dataclass(frozen=True)
class Described:
    subject: Subject
    readings: list[Reading]

    @functools.cached_property
    def data(self) -> dict:
        return explorer.describe(self.subject, self.readings, title="<b>")


def spell(token: int) -> Token:
    return Token("\ufffd", hex="f0") if token == 7 else Token(f" w{token}", special=token == 3)


def a_reading(draw, length, source=None, vocab=11):
    ids = tuple(draw.integers(0, vocab, length).tolist())
    if source is None:
        return Reading(f"text of {length}", ids)
    return Reading(f"text of {length}", ids, f"source of {source}", tuple(draw.integers(0, vocab, source).tolist()))


@pytest.fixture(scope="session")
def described(build):
    """`described("rotary")`: a subject, what it read, and what `describe` said of that."""
    made = {}

    def describe(kind: str) -> Described:
        if kind not in made:
            arguments, stack, lengths = KINDS[kind]
            model, params, *_ = build(*arguments, **stack)
            subject, draw = Subject(model, params, spell, "a test"), np.random.default_rng(0)
            readings = [a_reading(draw, *pair) for pair in lengths]
            made[kind] = Described(subject, readings)
        return made[kind]

    return describe


# Tokens that would run, close the page's script, turn the writing around or be invisible if they were markup.
CANARIES = (
    "</script><script>window.ran = 1</script>",
    "<img src=x onerror='window.ran = 1'>",
    "\u202eevil\u202c",
    "a\u200bb",
    " mole",
    "\n",
)
QUIET = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
OFFLINE = "--disable-component-update --disable-sync --disable-default-apps --disable-extensions"
LAYERS, HEADS, GROUPS, WIDTH, VOCAB = 3, 4, 2, 8, 40
SCALE, SOFTCAP = WIDTH**-0.5, 5.0
SOURCE = 5  # tokens that the encoder read
BLIND = 4  # the query that may attend to none of them
DETAILED = (1, 2)  # layers with queries, keys and values; the other one has weights only


@pytest.fixture(scope="session")
def browser():
    """Chromium, for all tests; skips where there is none, or no playwright to drive it."""
    playwright = pytest.importorskip("playwright.sync_api", reason="the playwright package drives the browser")
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if not found:
        pytest.skip(f"no browser: install one of {', '.join(names)}, or name one in CHROMIUM")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=found, args=f"{QUIET} {OFFLINE}".split())
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser, tmp_path):
    """`visit(data, width=1280, scheme="light")` opens the page of data; it must be quiet but for what is expected."""
    contexts, noise = [], []

    def go(data=None, *, url="", width=1280, scheme="light", expected=None, ready="main", **settings):
        def hear(message):
            if expected is None or expected not in message:
                noise.append(message)

        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **settings)
        contexts.append(context)
        tab = context.new_page()
        tab.set_default_timeout(8000)
        if not url:
            file = tmp_path / f"page{len(contexts)}.html"
            file.write_text(explorer.page(data), encoding="utf-8")
            url = file.as_uri()
        tab.on("console", lambda message: hear(f"{message.type}: {message.text}"))
        tab.on("pageerror", lambda error: hear(str(error)))
        tab.on("request", lambda request: None if request.url.startswith(url) else hear(request.url))
        tab.goto(url)
        tab.wait_for_selector(ready)
        return tab

    yield go
    ran = [context.pages[0].evaluate("window.ran") for context in contexts]
    for context in contexts:
        context.close()
    assert noise == [] and ran == [None] * len(contexts)


@pytest.fixture(scope="session")
def sample():
    """`sample.data`, a page's; and `sample.truth[text][name][layer]`, in float64 what it must show of an attention."""
    return _sample(12, 9)


@pytest.fixture(scope="session")
def large():
    """As `sample`, with one text of so many tokens that their grid is drawn on a canvas."""
    return _sample(48)


def _sample(*lengths: int) -> types.SimpleNamespace:
    generator = np.random.default_rng(0)
    texts, truth = [], []
    for index, length in enumerate(lengths):
        own = [_layer(generator, length, length, 3 if layer % 2 == 0 else length) for layer in range(LAYERS)]
        cross = [_layer(generator, length, SOURCE, None) for _ in range(LAYERS)]
        truth.append({"decoder": own, "decoder/cross": cross})
        texts.append(_text(generator, index, length, truth[-1]))
    cosines = generator.uniform(-1, 1, (LAYERS + 1, lengths[0], lengths[-1]))
    pair = {"a": 0, "b": len(lengths) - 1, "side": "decoder"}
    rows = [_row("embedding/table", None, 320), _row("decoder/blocks/mlp/up/kernel", 7, 14)]
    data = {
        **dict(
            version=1, title="a sample\n <b>title</b> \u202e", origin="random", served=None, model=_model(), texts=texts
        ),
        "ledger": {"rows": rows, "total": 334},
        "limits": ["Exact queries, keys and values are kept for layers 1, 2 of 3: choose others with --detail=0."],
        "similarity": [{**pair, "cosines": pack(np.round((cosines + 1) / 2 * 65535), "u16")}],
    }
    return types.SimpleNamespace(data=data, truth=truth, cosines=cosines)


def _layer(generator, length: int, keys: int, window: int | None) -> dict:
    """Queries, keys, values and every step from them to the weights; without a window all but BLIND see everything."""
    query = generator.normal(size=(length, HEADS, WIDTH)).astype(np.float32)
    key, value = (generator.normal(size=(keys, GROUPS, WIDTH)).astype(np.float32) for _ in range(2))
    bias = generator.normal(size=(HEADS, length, keys)).astype(np.float32)
    distance = np.arange(length)[:, None] - np.arange(keys)
    everyone = np.broadcast_to(np.arange(length)[:, None] != BLIND, distance.shape)
    visible = (distance >= 0) & (distance < window) if window else everyone
    raw = np.einsum("thk,shk->hts", query.astype(float), np.repeat(key, HEADS // GROUPS, axis=1).astype(float))
    biased = SOFTCAP * np.tanh(raw * SCALE / SOFTCAP) + bias
    exponentials = np.where(visible, np.exp(biased), 0.0)
    weights = exponentials / np.maximum(exponentials.sum(-1, keepdims=True), 1e-30)
    return dict(query=query, key=key, value=value, bias=bias, visible=visible, raw=raw, biased=biased, weights=weights)


def _text(generator, index: int, length: int, layers: dict[str, list[dict]]) -> dict:
    tokens = [{"id": place, "text": text} for place, text in enumerate(CANARIES)]
    tokens += [{"id": 6, "text": "", "special": True}, {"id": 7, "text": "\ufffd", "hex": "f09f"}]
    tokens += [{"id": 8 + place, "text": f" w{place}"} for place in range(length - len(tokens))]
    sides = {"decoder": tokens, "encoder": [{"id": 8, "text": " source"}] * SOURCE}
    norms = {side: pack(np.full((LAYERS + 1, len(read)), 4.0), "f32") for side, read in sides.items()}
    attentions = [_attention(generator, name, "encoder" if "/" in name else "decoder", layers[name]) for name in layers]
    probabilities = generator.uniform(size=(LAYERS + 1, length, 3))
    ids = generator.integers(0, VOCAB, probabilities.shape)
    return {
        **dict(text=f"text {index}", position=length - 1, attentions=attentions, next=_next(generator, length)),
        "sides": {side: {"tokens": sides[side], "norms": norms[side]} for side in sides},
        "lens": {"side": "decoder", "ids": pack(ids, "i32"), "probabilities": pack(probabilities, "f32")},
    }


def _attention(generator, name: str, keys: str, layers: list[dict]) -> dict:
    cells = [np.round(255 * layer["weights"][head][layer["visible"]]) for layer in layers for head in range(HEADS)]
    return {
        **dict(name=name, stack="decoder", queries="decoder", keys=keys, layers=list(range(LAYERS)), periods=2),
        **dict(heads=HEADS, kv_heads=GROUPS, head_width=WIDTH, scale=SCALE, softcap=SOFTCAP),
        "visible": pack_bits(np.stack([layers[0]["visible"], layers[1]["visible"]])),
        "pattern": pack(np.concatenate(cells), "u8"),
        "scores": {"entropy": pack(generator.uniform(0, 2, (LAYERS, HEADS)), "f32")},
        "ablation": pack(np.roll(np.arange(LAYERS * HEADS).reshape(LAYERS, HEADS) / 10, -1, axis=1), "f32"),
        "detail": {str(layer): _detail(generator, layers[layer]) for layer in DETAILED},
    }


def _detail(generator, layer: dict) -> dict:
    length = len(layer["query"])
    packed = {name: pack(layer[name], "f32") for name in ("query", "key", "value", "bias")}
    ids, values = generator.integers(0, VOCAB, (length, HEADS, 8)), generator.normal(size=(length, HEADS, 8))
    norm, cosine = np.full((length, HEADS), 3.0), np.full((length, HEADS), 0.0)
    promotes = {"ids": pack(ids, "i32"), "values": pack(values, "f32")}
    return {**packed, "output_norm": pack(norm, "f32"), "cosine": pack(cosine, "f32"), "promotes": promotes}


def _next(generator, length: int) -> dict:
    """Every logit at the last position; elsewhere the likeliest 10 and the others' in two bins."""
    logits = generator.normal(size=(length, VOCAB)).astype(np.float32) * 2
    order = np.argsort(-logits, axis=-1)
    ordered = np.take_along_axis(logits, order, -1)
    means = [part.mean(-1) for part in np.split(ordered[:, 10:], 2, -1)]
    bins = np.stack([np.stack([np.full(length, 15.0), mean], -1) for mean in means], 1)
    top = {"ids": pack(order[:, :10], "i32"), "logits": pack(ordered[:, :10], "f32"), "tail": pack(bins, "f32")}
    top["log_sum_exp"] = pack(np.log(np.exp(logits.astype(float)).sum(-1)), "f32")
    names = {str(place): text for place, text in enumerate(CANARIES)}
    names |= {str(place): f" w{place}" for place in range(len(CANARIES), VOCAB)}
    kept = {str(length - 1): pack(logits[-1], "f32")}
    return dict(side="decoder", positions=list(range(length)), all=kept, top=top, names=names)


def _model() -> dict:
    stack = dict(depth=LAYERS, heads=HEADS, kv_heads=GROUPS, head_width=WIDTH, causal=True, crosses=True)
    stack |= dict(position="alibi", norm_placement="pre")
    return dict(vocab=VOCAB, width=32, parameters=334, dtype="float32", length=64, stacks={"decoder": stack})


def _row(part: str, per_block: int | None, count: int) -> dict:
    return dict(part=part, formula="D·F = 1 x 7", per_head=None, per_block=per_block, count=count)
