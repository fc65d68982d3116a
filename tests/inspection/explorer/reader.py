"""Reads the numbers of a payload, as the page does."""

from __future__ import annotations

import numpy as np

from transformer.inspection.explorer.packing import unpack

# The model computes in float32, NumPy in float64: two layers of numbers about 1 agree to some 1e-5.
CLOSE = {"rtol": 2e-4, "atol": 2e-4}


def softmax(logits):
    raised = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return raised / raised.sum(axis=-1, keepdims=True)


def inputs(reading):
    source = {} if reading.source is None else {"source": np.array([reading.source])}
    return {"tokens": np.array([reading.tokens]), **source}


def visible(part, keys):
    """`[periods, T, S]` booleans of an attention's JSON."""
    return np.unpackbits(unpack(part["visible"]), axis=-1, bitorder="little")[..., :keys].astype(bool)


def patterns(part, queries, keys):
    """`[layers, H, T, S]` weights of an attention's JSON, 0 where nothing is visible."""
    seen, cells, place = visible(part, keys), unpack(part["pattern"]), 0
    out = np.zeros((len(part["layers"]), part["heads"], queries, keys))
    for row, layer in enumerate(part["layers"]):
        view = seen[layer % part["periods"]]
        for head in range(part["heads"]):
            out[row, head][view] = cells[place : place + view.sum()] / 255
            place += view.sum()
    assert place == len(cells)
    return out


def sites(part):
    """The name of a site in one layer of an attention."""
    return (part["stack"] + "/{}/cross/" if part["name"].endswith("/cross") else part["stack"] + "/{}/").format


def walk(described, kind):
    """Each text's JSON, with the reading and the number of tokens on both sides of each attention."""
    made = described(kind)
    for text, reading in zip(made.data["texts"], made.readings, strict=True):
        lengths = {role: len(side["tokens"]) for role, side in text["sides"].items()}
        for part in text["attentions"]:
            yield text, reading, part, lengths[part["queries"]], lengths[part["keys"]]


def rms(x):
    return np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6)


def recomputed(part, one, layer, keys):
    """The pattern of one layer `[H, T, S]` as the page makes it, from what it has alone."""
    key = np.repeat(unpack(one["key"]), part["heads"] // part["kv_heads"], axis=1)
    scores = np.einsum("thk,shk->hts", unpack(one["query"]).astype(float), key) * part["scale"]
    scores = scores if part["softcap"] is None else part["softcap"] * np.tanh(scores / part["softcap"])
    scores = scores if one["bias"] is None else scores + unpack(one["bias"])
    view = visible(part, keys)[layer % part["periods"]]
    assert view.sum() < view.size or part["name"] != "decoder"
    return softmax(np.where(view, scores, -np.inf))
