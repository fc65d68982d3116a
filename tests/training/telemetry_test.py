import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer.training import parallel, telemetry
from transformer.training.objective import SEEN

B, T, L, H = 4, 3, 2, 5


def totals(params, tokens, *, weights, segments=0, positions=0):
    """Something to add up: each head's own share of the tokens; the last head is never concerned."""
    share = params["share"] * (jnp.arange(H) < H - 1)  # [L, H]
    seen = tokens + 10 * segments + 100 * positions
    return {"decoder": {"seen": (share * jnp.sum(seen * weights), share * jnp.sum(weights))}}


def batch():
    draw = np.random.default_rng(0)
    whole = {name: draw.integers(0, 9, (B, T)) for name in ("inputs", "targets", "segments", "positions")}
    return {**whole, "weights": draw.uniform(size=(B, T)).astype(np.float32)}


PARAMS = {"share": np.arange(1, 1 + L * H, dtype=np.float32).reshape(L, H)}


@pytest.mark.parametrize("kind", ["jit", "pmap"])
def test_values_are_means_by_attention_layer_head_and_score(kind):
    rows = batch()
    placed = {name: value[None] if kind == "pmap" else value for name, value in rows.items()}
    values = telemetry.heads(totals, functools.partial(parallel.build, kind))(PARAMS, placed)
    assert list(values) == [f"heads/decoder/{layer}/{head}/seen" for layer in range(L) for head in range(H)]
    seen = rows["inputs"] + 10 * rows["segments"] + 100 * rows["positions"]
    mean = np.sum(seen * rows["weights"].astype(np.float64)) / rows["weights"].sum()
    for name, value in values.items():
        assert isinstance(value, float)
        assert math.isnan(value) if name.split("/")[3] == str(H - 1) else value == pytest.approx(mean, rel=1e-5)


def test_a_batch_without_segments_gives_none():
    rows = {name: value for name, value in batch().items() if name not in ("segments", "positions")}
    total, _ = telemetry.observation_step(PARAMS, rows, totals=totals)["decoder"]["seen"]
    np.testing.assert_allclose(total[0, 0], np.sum(rows["inputs"] * rows["weights"]), rtol=1e-6)


def test_totals_are_summed_over_devices_before_they_are_divided():
    rows = {name: value.reshape(2, B // 2, T) for name, value in batch().items()}
    step = functools.partial(telemetry.observation_step, totals=totals, axis_name="data")
    summed = jax.vmap(step, in_axes=(None, 0), axis_name="data")(PARAMS, rows)["decoder"]["seen"]
    whole = telemetry.observation_step(PARAMS, batch(), totals=totals)["decoder"]["seen"]
    for several, one in zip(summed, whole, strict=True):
        np.testing.assert_allclose(several, np.broadcast_to(one, (2, L, H)), rtol=1e-6)


def test_all_that_the_model_sees_is_handed_on_and_nothing_else():
    told = {name: np.full((B, T), number) for number, name in enumerate(SEEN)}
    seen = {}

    def totals(params, tokens, **arguments):
        seen.update(arguments)
        return {}

    rows = batch()
    telemetry.observation_step(PARAMS, {**rows, **told}, totals=totals)
    assert seen == {**told, "weights": rows["weights"]}
