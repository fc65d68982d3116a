"""Telling order: sinusoids, rotary embeddings, relative-position buckets and linear biases.

Sinusoids are added to embeddings; rotary embeddings turn queries and keys; buckets and slopes make a bias on scores.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

SCALINGS = ("none", "linear", "ntk", "dynamic", "llama3", "yarn")


def sinusoid(positions: jax.Array, width: int, base: float = 10_000.0, *, halves: bool = False) -> jax.Array:
    """Sines and cosines of geometrically spaced wavelengths, Vaswani et al. 2017 (arXiv:1706.03762), section 3.5.

        out[2i] = sin(position / base^(2i / width)),  out[2i + 1] = cos(position / base^(2i / width))

    or, in `halves`, the same numbers with all sines before all cosines, as tensor2tensor and Marian arrange them:

        out[i] = sin(position / base^(2i / width)),  out[width / 2 + i] = cos(position / base^(2i / width))

    Args:
      positions: `[..., T]` numbers.
      width: the features of one position; even.
      base: wavelengths run from 2 pi to almost `base * 2 pi`.
      halves: sines in the first half of the features and cosines in the second, rather than alternating.

    Returns:
      `[..., T, width]` in float32.

    Raises:
      ValueError: if `width` is not even and positive.
    """
    _check_even(width)
    frequencies = jnp.asarray(_geometric(width, base), jnp.float32)
    angles = jnp.asarray(positions, jnp.float32)[..., None] * frequencies  # [..., T, width / 2]
    if halves:
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(*angles.shape[:-1], width)


def rotary_frequencies(
    width: int,
    *,
    base: float = 10_000.0,
    kind: str = "none",
    factor: float = 1.0,
    original_length: int | None = None,
    low: float | None = None,
    high: float | None = None,
    magnitude: float | None = None,
    length: int | jax.Array | None = None,
) -> tuple[jax.Array, float]:
    """The angle by which each pair of features turns from one position to the next, for `rotate`.

        frequency[i] = base^(-2i / width)

    Su et al. 2021 (arXiv:2104.09864), section 3.2.2. A `kind` of scaling slows the turning, so that a model trained
    on `original_length` positions reads about `factor` times as many:

      none: as above.
      linear: every frequency / factor. Position interpolation, Chen et al. 2023 (arXiv:2306.15595).
      ntk: base * factor^(width / (width - 2)): the slowest pair is interpolated, the fastest left alone. NTK-aware
        interpolation, Peng et al. 2023 (arXiv:2309.00071), section 3.1.
      dynamic: as ntk, with `factor * n / original_length - (factor - 1)` in the place of factor, where n is the larger
        of `length` and `original_length`: nothing changes until a text outgrows the original length.
      llama3: pairs that turn fewer than `low` times in the original length are interpolated, those that turn more than
        `high` times are left alone, and a straight line in the number of turns joins the two. Grattafiori et al. 2024
        (arXiv:2407.21783) in its released code.
      yarn: as llama3 with `low` = beta_slow and `high` = beta_fast, but the line is straight in the pair's index
        (rounded outwards), and queries and keys are multiplied by `magnitude`. Peng et al. 2023, sections 3.2 to 3.4.

    Args:
      width: the number of features that turn; even.
      base: the wavelengths run from 2 pi to almost `base * 2 pi` positions.
      kind: one of `SCALINGS`; a kind ignores the arguments that its line above does not name.
      factor: the stretch; at least 1.
      original_length: positions seen in training; needed by dynamic, llama3 and yarn.
      low, high: turns within the original length, `0 < low < high`; needed by llama3 and yarn.
      magnitude: yarn only: the factor of turned queries and keys; None is 0.1 ln(factor) + 1.
      length: dynamic only: how many positions are in use, an integer or a traced scalar; None is the original length.

    Returns:
      The frequencies, `[width / 2]` in float32, and the magnitude that `rotate` takes.

    Raises:
      ValueError: if an argument is out of range, or one is missing that `kind` needs.
    """
    _check_scaling(width, kind, factor, original_length, low, high, magnitude)
    if kind == "ntk":
        return _rebased(width, base, factor), 1.0
    if kind == "dynamic":
        return _rebased(width, base, _dynamic_factor(factor, original_length, length)), 1.0
    frequencies = _geometric(width, base)
    kept = np.ones_like(frequencies)  # how much of each frequency escapes the division by factor
    if kind == "linear":
        kept = np.zeros_like(frequencies)
    elif kind == "llama3":
        turns = original_length * frequencies / (2 * math.pi)
        kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    elif kind == "yarn":
        kept = _yarn_ramp(width, base, original_length, low, high)
    frequencies = frequencies * (kept + (1 - kept) / factor)
    if magnitude is None:
        magnitude = 0.1 * math.log(factor) + 1.0 if kind == "yarn" else 1.0
    return jnp.asarray(frequencies, jnp.float32), magnitude


def rotate(x: jax.Array, positions: jax.Array, frequencies: jax.Array, magnitude: float = 1.0) -> jax.Array:
    """Turn pairs of features by angles that grow with the position, so that products of a turned query and a turned
    key depend on their distance only. Su et al. 2021 (arXiv:2104.09864), equation 34.

    With R = 2 * len(frequencies), feature i < R / 2 is paired with feature i + R / 2 (the pairing of GPT-NeoX and
    Llama; the paper pairs neighbours). Features from R on pass unchanged.

    Args:
      x: queries or keys `[B, T, H, K]`, K >= R.
      positions: `[T]` or `[B, T]` numbers.
      frequencies: `[R / 2]`, from `rotary_frequencies`.
      magnitude: multiplies the turned features.

    Returns:
      `[B, T, H, K]` in the dtype of `x`; the angles and products are float32.

    Raises:
      ValueError: if the shapes do not fit each other.
    """
    _check_rotate(x, positions, frequencies)
    half = frequencies.shape[0]
    angles = jnp.asarray(positions, jnp.float32)[..., None] * frequencies  # [T, R/2] or [B, T, R/2]
    cosine, sine = (magnitude * f(angles)[..., None, :] for f in (jnp.cos, jnp.sin))  # [(B,) T, 1, R/2]
    first, second = (part.astype(jnp.float32) for part in (x[..., :half], x[..., half : 2 * half]))
    turned = jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
    return jnp.concatenate([turned.astype(x.dtype), x[..., 2 * half :]], axis=-1)


def relative_buckets(distances: jax.Array, *, bidirectional: bool, buckets: int, distance: int) -> jax.Array:
    """Sort distances into buckets that share a bias. Raffel et al. 2020 (arXiv:1910.10683), section 2.1.

    Of n buckets on one side, distances d < e = floor(n / 2) have one each; larger ones share, on a logarithmic scale,

        e + floor((n - e) * log(d / e) / log(distance / e)), at most n - 1

    where the edges are found in whole numbers, so that no rounding of logarithms moves a distance across one.

    Args:
      distances: integers of any shape, key position - query position.
      bidirectional: True gives keys after the query the upper half of the buckets; False puts them all into bucket 0.
      buckets: how many there are in all.
      distance: this distance and all larger ones share the last bucket.

    Returns:
      Bucket numbers from 0 to `buckets - 1` in the shape of `distances`, int32.

    Raises:
      ValueError: if `buckets` are too few or do not split evenly, or `distance` is within the exact buckets.
    """
    side = buckets // 2 if bidirectional else buckets
    exact = side // 2
    if side < 2 or (bidirectional and buckets % 2):
        fewest = "an even number of at least 4" if bidirectional else "at least 2"
        raise ValueError(f"buckets={buckets}: with bidirectional={bidirectional} use {fewest}")
    if distance <= exact:
        raise ValueError(f"distance={distance} lies within the {exact} exact buckets; pass more than {exact}")
    distances = jnp.asarray(distances, jnp.int32)
    back = jnp.abs(distances) if bidirectional else jnp.maximum(-distances, 0)
    shared = jnp.searchsorted(_bucket_edges(exact, side - exact, distance), back, side="right", method="compare_all")
    bucket = jnp.where(back < exact, back, exact + shared).astype(jnp.int32)
    return bucket + side * (distances > 0) if bidirectional else bucket


def alibi_slopes(heads: int) -> jax.Array:
    """How fast each head's bias falls with distance: scores gain `-slope * |query - key|`.

        slope[h] = 2^(-8 (h + 1) / heads)

    for a power of two. Otherwise the slopes of the next smaller power p come first, then every second one of 2p's.
    Press et al. 2021 (arXiv:2108.12409), section 3, and its released code for other numbers of heads.

    Returns:
      `[heads]` in float32.

    Raises:
      ValueError: if `heads` is not positive.
    """
    if heads < 1:
        raise ValueError(f"heads={heads}: there is one slope a head; pass 1 or more")
    power = 2 ** (heads.bit_length() - 1)
    first = 2.0 ** (-8 * np.arange(1, power + 1) / power)
    between = 2.0 ** (-8 * np.arange(1, 2 * power, 2) / (2 * power))
    return jnp.asarray(np.concatenate([first, between])[:heads], jnp.float32)


def _geometric(width: int, base: float) -> np.ndarray:
    return float(base) ** (-np.arange(0, width, 2) / width)


def _rebased(width: int, base: float, factor: float | jax.Array) -> jax.Array:
    exponents = np.arange(0, width, 2) / width
    return jnp.asarray((base * factor ** (width / (width - 2))) ** -exponents, jnp.float32)


def _dynamic_factor(factor: float, original_length: int, length: int | jax.Array | None) -> float | jax.Array:
    if length is None:
        return 1.0
    longest = jnp.maximum(length, original_length) if isinstance(length, jax.Array) else max(length, original_length)
    return factor * longest / original_length - (factor - 1)


def _yarn_ramp(width: int, base: float, original_length: int, low: float, high: float) -> np.ndarray:
    def pair_of(turns: float) -> float:
        return width * math.log(original_length / (turns * 2 * math.pi)) / (2 * math.log(base))

    start, stop = max(math.floor(pair_of(high)), 0), min(math.ceil(pair_of(low)), width - 1)
    stop = stop + 0.001 if start == stop else stop  # a step, as published: a line needs two different ends
    return 1.0 - np.clip((np.arange(width // 2) - start) / (stop - start), 0.0, 1.0)


def _bucket_edges(exact: int, shared: int, distance: int) -> np.ndarray:
    """The smallest distances of the shared buckets after the first: d >= exact * (distance / exact)^(k / shared)."""
    edges, edge = [], exact
    for k in range(1, shared):
        while edge**shared < exact ** (shared - k) * distance**k:
            edge += 1
        edges.append(edge)
    return np.asarray(edges, np.int32)


def _check_even(width: int) -> None:
    if width < 2 or width % 2:
        raise ValueError(f"width={width}: features come in pairs; pass a positive even number")


def _check_scaling(
    width: int,
    kind: str,
    factor: float,
    original_length: int | None,
    low: float | None,
    high: float | None,
    magnitude: float | None,
) -> None:
    _check_even(width)
    if kind not in SCALINGS:
        raise ValueError(f"kind={kind!r}: choose one of {', '.join(SCALINGS)}")
    if factor < 1:
        raise ValueError(f"factor={factor}: frequencies are only ever slowed; pass 1 or more")
    if kind in ("ntk", "dynamic") and width < 4:
        raise ValueError(f"width={width}: kind={kind!r} rescales the pairs after the first; pass 4 or more")
    if kind in ("dynamic", "llama3", "yarn") and (original_length is None or original_length < 1):
        raise ValueError(f"original_length={original_length}: kind={kind!r} needs the positive length of training")
    if kind in ("llama3", "yarn") and (low is None or high is None or not 0 < low < high):
        raise ValueError(f"low={low}, high={high}: kind={kind!r} needs both, 0 < low < high")
    if magnitude is not None and (kind != "yarn" or not magnitude > 0):
        raise ValueError(f"magnitude={magnitude}, kind={kind!r}: only yarn takes one, and it is positive; pass None")


def _check_rotate(x: jax.Array, positions: jax.Array, frequencies: jax.Array) -> None:
    if x.ndim != 4:
        raise ValueError(f"x has shape {x.shape}; rotate takes queries or keys as [B, T, H, K]")
    if jnp.shape(positions) not in ((x.shape[1],), (1, x.shape[1]), x.shape[:2]):
        raise ValueError(f"positions has shape {jnp.shape(positions)}; x {x.shape} needs [T] or [B, T]")
    if frequencies.ndim != 1 or 2 * frequencies.shape[0] > x.shape[3]:
        raise ValueError(f"frequencies has shape {frequencies.shape}; x {x.shape} has {x.shape[3] // 2} pairs to turn")
