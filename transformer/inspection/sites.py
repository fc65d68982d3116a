"""Which sites a model has, with axes, shapes and dtypes: found by tracing it, so that nothing can disagree with it."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from transformer.models.config import ModelConfig
from transformer.models.transformer import Transformer
from transformer.nn.tap import SITES, Tap, Taps, in_forward_order


class Site(NamedTuple):
    """One place where a model can be read and patched.

    Attributes:
      axes: one letter of the legend in `transformer` for each axis, such as `BHTS`.
      shape: of the array in one layer.
      dtype: of the array.
    """

    axes: str
    shape: tuple[int, ...]
    dtype: jnp.dtype


def sites(model: Transformer, *, batch: int = 1, length: int = 8, source_length: int | None = None) -> dict[str, Site]:
    """Every site of a model by name, in forward order, for tokens `[batch, length]`.

    Nothing is computed and no parameter allocated, whatever the model's size.

    Args:
      source_length: of the source that an encoder-decoder reads; None: `length`.
    """
    ids = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.int32)
    tokens, arguments = ids((batch, length)), {}
    if model.config.encoder is not None and model.config.decoder is not None:
        arguments["source"] = ids((batch, length if source_length is None else source_length))
    params = jax.eval_shape(model.init, jax.random.key(0), tokens, **arguments)["params"]
    found = discover(model, params, tokens, arguments)
    return {name: found[site] for site, name in layered(found, model.config)}


def discover(model: Transformer, params, tokens: jax.Array, arguments: dict, flags: tuple = ()) -> dict[str, Site]:
    """The sites that one run reaches, those of layers under `*` with the shape of one layer; arguments as in `run`."""
    taps = _capture_everything.eval_shape(params, tokens, arguments, model=model, flags=flags)
    shapes = {site: array.shape["*" in site :] for site, array in taps.stacked().items()}
    return {site: Site(SITES[site], shapes[site], array.dtype) for site, array in taps.stacked().items()}


def split_flags(model_arguments: dict) -> tuple[dict, tuple[tuple[str, bool], ...]]:
    """The arguments of a model's call that are traced, and the booleans, which are compiled in.

    Raises:
      ValueError: if there is one that only `run` takes.
    """
    for name in ("capture", "patches"):
        if name in model_arguments:
            raise ValueError(f"{name} cannot be given here: only inspection.run takes it")
    flags = {name: bool(value) for name, value in model_arguments.items() if isinstance(value, (bool, np.bool_))}
    return {name: value for name, value in model_arguments.items() if name not in flags}, tuple(sorted(flags.items()))


def without_cache(model_arguments: dict) -> None:
    """Raises ValueError if there is a cache, where whole sequences are looked at."""
    if model_arguments.get("cache") is not None:
        raise ValueError("cache cannot be given here: pass all tokens and leave it out")


def listed(argument: str, given, kinds: tuple[type, ...]) -> tuple:
    """One thing or several as a tuple; raises ValueError if they are not of these kinds."""
    several = (given,) if isinstance(given, (str, *kinds)) or not isinstance(given, Iterable) else tuple(given)
    for one in several:
        if not isinstance(one, kinds):
            names = " or ".join(kind.__name__ for kind in kinds)
            raise ValueError(f"{argument}={one!r} cannot work: give {names}, one or several")
    return several


def layered(names: Iterable[str], config: ModelConfig) -> list[tuple[str, str]]:
    """Pairs of a site and its name in one layer, in forward order, for each layer that the model has.

    `decoder/*/pattern` becomes `decoder/0/pattern`, `decoder/1/pattern`, ...; a site outside the layers is its own
    name. Layered sites of a stack that the model lacks are left out.
    """
    found = {}
    for site in names:
        stack = getattr(config, site.split("/")[0], None)
        if "*" in site:
            found |= {site.replace("*", str(layer)): site for layer in range(stack.depth if stack else 0)}
        else:
            found[site] = site
    return [(found[name], name) for name in in_forward_order(found)]


@functools.partial(jax.jit, static_argnames=("model", "flags"))
def _capture_everything(params, tokens, arguments, *, model, flags) -> Taps:
    tap = Tap(name for _, name in layered(SITES, model.config))
    model.apply({"params": params}, tokens, tap=tap, **arguments, **dict(flags))
    return tap.taps()
