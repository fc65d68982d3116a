"""Evaluation over everything there is, each token weighing the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax

PENDING = 32  # batches in flight before their sums are fetched


def evaluate(
    evaluation_step: Callable[[Any, Any], dict[str, jax.Array]],
    params: Any,
    batches: Iterable[Any],
    bytes: int | None = None,
) -> dict[str, float]:
    """Sums what each batch gives over all of them in float64 and divides once.

    Args:
      evaluation_step: `(params, batch) -> sums` over all devices, with at least `nats` and `count`; any other sum, such
        as `accuracy`, is divided by the count too.
      params: the model's parameters.
      batches: placed batches; the last may be ragged, as weights say what counts.
      bytes: of the text that the tokens stand for; None leaves bits per byte out.

    Returns:
      `loss`, nats per token; `perplexity`, `exp(loss)`; `tokens`, the count; the other sums by their names; and
      `bits_per_byte`, `nats / (ln 2 * bytes)`, which compares tokenizers.

    Raises:
      ValueError: if nothing counts, or `bytes` is not positive.
    """
    if bytes is not None and bytes <= 0:
        raise ValueError(f"bytes={bytes} must be positive; leave it out when the text's size is not known")
    pending, rows = [], []

    def fetch() -> None:
        rows.extend({name: float(value) for name, value in sums.items()} for sums in jax.device_get(pending))
        pending.clear()

    for batch in batches:
        pending.append(evaluation_step(params, batch))
        if len(pending) == PENDING:
            fetch()
    fetch()
    totals = {name: math.fsum(row[name] for row in rows) for name in (rows[0] if rows else {"count": 0})}
    count = totals.pop("count")
    if not count > 0:
        raise ValueError(f"nothing to evaluate: {len(rows)} batches have a total weight of {count}")
    nats = totals.pop("nats")
    loss = nats / count
    result = {"loss": loss, "perplexity": math.exp(loss) if loss < 700 else math.inf, "tokens": count}
    result |= {name: total / count for name, total in totals.items()}
    return result if bytes is None else result | {"bits_per_byte": nats / math.log(2) / bytes}
