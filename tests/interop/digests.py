"""What a model computes from the inputs of a case, and a digest of it that is small enough to keep on file."""

from __future__ import annotations

import json
import pathlib
import zlib

import jax.numpy as jnp
import numpy as np

from tests.interop import cases
from transformer import decoding, inspection
from transformer.interop.families import FAMILIES

FILE = pathlib.Path(__file__).with_name("golden.json")
LENGTH = 24  # tokens of a continuation that are kept

Seen = dict[str, np.ndarray]


def canonical(case, name: str) -> str:
    """A tensor's name in the family's table."""
    family = FAMILIES[case.family]
    if name.startswith("lm_head") and case.family == "gpt_neox":
        return name.replace("lm_head", "embed_out")
    return name if name.startswith((family.prefix, *family.heads)) else family.prefix + name


def ours(case, model, params) -> Seen:
    """Every state, pattern and logit that this library computes."""
    given = {name: jnp.asarray(array) for name, array in cases.inputs(case).items()}
    capture = ("**/residual_pre", "**/pattern", "*/final_norm")
    if case.sequence_to_sequence:
        arguments = {"tokens": cases.target(), "source": given["tokens"], "source_mask": given["mask"]}
    else:
        arguments = given
    logits, taps = inspection.run(model, params, capture=capture, **arguments)
    seen = {name: np.asarray(taps[name]) for name in taps} | {"logits": np.asarray(logits)}
    if model.config.pooler:
        seen["pooled"] = np.asarray(model.apply({"params": params}, method="pool", **given))
    return seen


def continuation(case, model, params, length: int) -> np.ndarray:
    """The greedy continuation of both rows at once."""
    rows = prompts(case)
    if (case.fields.get("rope_scaling") or {}).get("rope_type") == "dynamic":  # the longest row scales all of them
        return np.concatenate([np.asarray(decoding.generate(model, params, row, length=length)) for row in rows])
    if not case.sequence_to_sequence:
        return np.asarray(decoding.generate(model, params, rows, length=length))
    start = [[case.fields["decoder_start_token_id"]]] * len(rows)
    return np.asarray(decoding.generate(model, params, start, length=length, source=rows))


def prompts(case) -> list[list[int]]:
    """The real tokens of each row."""
    given = cases.inputs(case)
    return [row[mask].tolist() for row, mask in zip(given["tokens"], given["mask"], strict=True)]


def real(case, site: str, array: np.ndarray) -> np.ndarray:
    """The part that belongs to real tokens, flat: what a model makes of padding is nobody's business."""
    mask = cases.inputs(case)["mask"]
    if site == "pooled":  # of the first position
        return array[mask[:, 0]].reshape(-1)
    if case.sequence_to_sequence and (site.startswith("decoder") or site == "logits"):
        return array.reshape(-1)
    rows = np.moveaxis(array, 1, 2) if site.endswith("pattern") else array  # [B, T, ...]
    return rows[mask].reshape(-1)


def compare(case, got: Seen, expected: Seen, tolerance: float) -> None:
    """Asserts that everything they have is the same here, relative to the largest magnitude."""
    assert expected.keys() <= got.keys()
    for site in expected:
        one, other = real(case, site, got[site]), real(case, site, expected[site])
        error = np.max(np.abs(one - other)) / np.max(np.abs(other))
        assert error <= tolerance, f"{site}: {error:.2e}"


def digest(case, seen: Seen) -> dict[str, list[float]]:
    """Four numbers for each site: projections on directions that depend on its name alone."""
    out = {}
    for site, array in seen.items():
        values = real(case, site, array).astype(np.float64)
        directions = np.random.default_rng(zlib.crc32(site.encode())).standard_normal((4, values.size))
        scale = np.max(np.abs(values)) * values.size**0.5
        out[site] = [round(float(number), 7) for number in directions @ values / scale]
    return out


def close(got: dict[str, list[float]], expected: dict[str, list[float]]) -> None:
    """Asserts that two digests agree."""
    assert expected.keys() <= got.keys()
    for site, numbers in expected.items():
        # Errors of 2e-5 of the largest magnitude, of either sign, projected and divided by the root of their number.
        np.testing.assert_allclose(got[site], numbers, rtol=0, atol=2e-5, err_msg=site)


def golden(name: str) -> dict | None:
    """What is on file for a case."""
    return json.loads(FILE.read_text()).get(name) if FILE.exists() else None


def record(name: str, **entries) -> None:
    """Put entries of a case on file."""
    content = json.loads(FILE.read_text()) if FILE.exists() else {}
    content[name] = content.get(name, {}) | entries
    lines = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in sorted(content.items()))
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
