"""The one seam through which every activation can be read or replaced.

A module calls `x = tap("pattern", x)`. With nothing captured and nothing patched that is `x` itself at trace time, so
the compiled program is the program without taps. Inside a stack the layers share a name for each site,
`decoder/*/pattern`; which layers are captured is static, what is patched (values, layer, head, position) is traced.

`SITES` gives every site's axes in the legend of `transformer`, in forward order; which of them a model has is for
`inspection.sites` to find. In an encoder T and S are both the length of what it reads; key and value of
cross-attention, and its scores and pattern, have the source's length as S.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

_ATTENTION = {
    "query": "BTHK",
    "key": "BSGK",
    "value": "BSGK",
    "scores": "BHTS",
    "pattern": "BHTS",
    "mixed": "BTHK",  # each head's weighted sum of values
    "head_output": "BTHD",  # each head's part of what attention adds to the residual
    "output": "BTD",  # their sum, with the bias
}
BLOCK_SITES = {
    "residual_pre": "BTD",
    **_ATTENTION,
    "residual_mid": "BTD",  # after self-attention
    **{f"cross/{name}": axes for name, axes in _ATTENTION.items()},
    "residual_cross": "BTD",  # after cross-attention
    "mlp/router": "BTN",  # logits over experts, where there are any
    "mlp/inner": "BTF",  # after the activation (and the gate), where there are no experts
    "mlp/outer": "BTD",
    "residual_post": "BTD",
}


def _stack_sites(role: str) -> dict[str, str]:
    blocks = {f"{role}/*/{name}": axes for name, axes in BLOCK_SITES.items()}
    return {f"{role}/embedding": "BTD", f"{role}/positions": "BTD", **blocks, f"{role}/final_norm": "BTD"}


SITES = {**_stack_sites("encoder"), **_stack_sites("decoder"), "logits": "BTV"}
MODES = ("set", "add", "scale")
Reader = Callable[[jax.Array], jax.Array]
_LAYERED = re.compile(r"(encoder|decoder)/(0|[1-9]\d*|\*)/(.+)")
_ORDER = {site: index for index, site in enumerate(SITES)}


@flax.struct.dataclass
class Patch:
    """A change at one site: set it to, add, or scale it by `value`, where layer, head, position and mask all agree.

    Everything but `site` and `mode` may be traced, so `vmap` over any of them runs many interventions at once.
    `inspection.run` checks a patch against the model and reads `decoder/2/pattern` and negative indices; a `Tap` takes
    full names with `*` and indices from 0, and an index that no layer, head or position has changes nothing.

    Attributes:
      site: a name such as `decoder/2/pattern`, or `decoder/*/pattern` with `layer` (None: every layer).
      value: broadcasts to the site's array; at `decoder/*/pattern` it may have one axis more in front, its layers, as
        what another run captured has.
      mode: `set`, `add` or `scale`.
      layer, head, position: scalar integers, negative ones from the end, or None for all. A key or value head counts
        among G; a position counts along T, or along S at sites that have no T.
      mask: booleans, True = patched, with the axes that `value` may have; None for everywhere.
    """

    site: str = flax.struct.field(pytree_node=False)
    value: jax.Array | float = 0.0
    mode: str = flax.struct.field(pytree_node=False, default="set")
    layer: jax.Array | int | None = None
    head: jax.Array | int | None = None
    position: jax.Array | int | None = None
    mask: jax.Array | None = None

    def apply(self, x: jax.Array, axes: str, layer: jax.Array | None = None) -> jax.Array:
        """`x`, an array with these axes, after the patch; `layer` is where the stack is now."""
        value, mask = (_of_layer(array, axes, layer) for array in (self.value, self.mask))
        where = jnp.ones((), bool) if mask is None else mask
        if self.layer is not None:
            where = jnp.logical_and(where, self.layer == layer)
        for index, axis in ((self.head, head_axis(axes)), (self.position, position_axis(axes))):
            if index is not None:
                where = jnp.logical_and(where, jax.lax.broadcasted_iota(jnp.int32, x.shape, axis) == index)
        # In float32 at least: a factor near 1 would be 1 in bfloat16.
        wide = jnp.promote_types(x.dtype, jnp.float32)
        value, own = jnp.asarray(value, wide), x.astype(wide)
        new = {"set": lambda: value, "add": lambda: own + value, "scale": lambda: own * value}[self.mode]()
        return jnp.where(where, new.astype(x.dtype), x)


def _of_layer(array: jax.Array | float | None, axes: str, layer: jax.Array | None) -> jax.Array | float | None:
    """The layer's own part of an array that has a layers' axis before a site's axes."""
    return jnp.asarray(array)[layer] if layer is not None and np.ndim(array) > len(axes) else array


def head_axis(axes: str) -> int | None:
    """Which of a site's axes counts heads: H, or G at keys and values; None where there is neither."""
    return next((index for index, letter in enumerate(axes) if letter in "HG"), None)


def position_axis(axes: str) -> int:
    """Which of a site's axes counts positions: T, or S where there is no T."""
    return axes.index("T" if "T" in axes else "S")


class Tap:
    """Reads and replaces at the sites of one scope, for one trace.

    Args:
      capture: full names of the sites to read, each layer by its number; in a mapping, what is kept of each site is
        what its reader returns, such as `{"decoder/0/pattern": jnp.max}`. None keeps the array itself.
      patches: applied in order, before the site is read; sites by full name with `*` for the layer.
    """

    def __init__(
        self,
        capture: Iterable[str] | Mapping[str, Reader | None] = (),
        patches: Iterable[Patch] = (),
        prefix: str = "",
        layer=None,
    ):
        self.capture = dict(capture) if isinstance(capture, Mapping) else dict.fromkeys(capture)
        self.patches = tuple(patches)
        self.prefix = prefix
        self.layer = layer
        self.captured: dict[str, jax.Array] = {}

    def __call__(self, name: str, x: jax.Array) -> jax.Array:
        site = self.prefix + name
        for patch in self.patches:
            if patch.site == site:
                x = patch.apply(x, SITES[site], self.layer)
        if site in self.capture:
            reader = self.capture[site]
            self.captured[site] = x if reader is None else reader(x)
        return x

    def wants(self, name: str) -> bool:
        """Whether the site is captured or patched, so that a computation must form it."""
        return self.prefix + name in self.capture or self.changes(name)

    def changes(self, name: str) -> bool:
        """Whether the site is patched."""
        return any(patch.site == self.prefix + name for patch in self.patches)

    def under(self, name: str) -> Tap:
        """The same tap for sites whose names begin with `name` and a slash; what it reads lands here."""
        child = Tap(self.capture, self.patches, f"{self.prefix}{name}/", self.layer)
        child.captured = self.captured
        return child

    def at_layer(self, role: str, layer: jax.Array | int) -> Tap:
        """A fresh tap inside one layer, which the stack empties into its buffers with `layers_of` and `store`.

        Raises:
          ValueError: if the layers of one site have different readers, which one scanned block cannot have.
        """
        readers: dict[str, Reader | None] = {}
        for name, reader in self.capture.items():
            site = split(name)[0]
            if name.startswith(f"{role}/") and readers.setdefault(site, reader) != reader:
                raise ValueError(f"{site} is captured in two ways: ask the same of each layer, or run once for each")
        return Tap(readers, self.patches, f"{role}/*/", layer)

    def layers_of(self, site: str) -> tuple[int, ...]:
        """The captured layers of a site such as `decoder/*/pattern`."""
        names = (split(name) for name in self.capture)
        return tuple(sorted(layer for name, layer in names if name == site and layer is not None))

    def store(self, buffers: Mapping[str, jax.Array]) -> None:
        """Take the stacked captures of a stack: site with `*` to `[captured layers, ...]`."""
        self.captured.update(buffers)

    def taps(self) -> Taps:
        """Everything captured so far, in forward order."""
        arrays = {site: self.captured[site] for site in sorted(self.captured, key=_ORDER.__getitem__)}
        return Taps(arrays, {site: self.layers_of(site) for site in arrays if "*" in site})


@jax.tree_util.register_pytree_with_keys_class
class Taps(Mapping):
    """Captured activations by site name, a pytree of arrays.

    A layered site answers to `decoder/3/pattern` (one layer) and to `decoder/*/pattern` (the captured layers, stacked
    in order on a new first axis). Iterates over single layers in forward order. Axes in front of these, from `vmap`,
    stay in front. `jax.device_get` turns the arrays into NumPy's.
    """

    __hash__ = None

    def __init__(self, arrays: Mapping[str, jax.Array], layers: Mapping[str, tuple[int, ...]]):
        self._arrays, self._layers = dict(arrays), dict(layers)

    def __getitem__(self, name: str) -> jax.Array:
        if name in self._arrays:
            return self._arrays[name]
        site, layer = split(name)
        if layer is None or layer not in self._layers.get(site, ()):
            raise KeyError(f"{name} was not captured; captured: {', '.join(self._lines()) or 'nothing'}")
        array, axis = self._arrays[site], -len(SITES[site]) - 1
        if array.ndim < -axis:
            raise ValueError(
                f"{site} has lost axes, now {array.shape}: take the layer before reducing, or read {site!r}"
            )
        return array[(..., self._layers[site].index(layer), *[slice(None)] * len(SITES[site]))]

    def __iter__(self) -> Iterator[str]:
        layered = (site.replace("*", str(layer)) for site, layers in self._layers.items() for layer in layers)
        return iter(in_forward_order([*layered, *(site for site in self._arrays if site not in self._layers)]))

    def __len__(self) -> int:
        return len(self._arrays) + sum(len(layers) - 1 for layers in self._layers.values())

    def __eq__(self, other: object) -> bool:
        """The same sites and layers with equal numbers."""
        if not isinstance(other, Taps):
            return NotImplemented
        same = self._layers == other._layers and self._arrays.keys() == other._arrays.keys()
        return same and all(np.array_equal(array, other._arrays[site]) for site, array in self._arrays.items())

    def __repr__(self) -> str:
        return f"Taps({', '.join(self._lines())})"

    def layers(self, site: str) -> tuple[int, ...]:
        """The layers stacked under a name such as `decoder/*/pattern`."""
        return self._layers[site]

    def stacked(self) -> dict[str, jax.Array]:
        """The arrays as they are kept, layered sites under `*`."""
        return dict(self._arrays)

    def tree_flatten_with_keys(self):
        """Leaves by site name; names and layers are structure."""
        leaves = tuple((jax.tree_util.DictKey(site), array) for site, array in self._arrays.items())
        return leaves, (tuple(self._arrays), tuple(self._layers.items()))

    @classmethod
    def tree_unflatten(cls, structure, arrays):
        """The inverse."""
        names, layers = structure
        return cls(dict(zip(names, arrays, strict=True)), dict(layers))

    def _lines(self) -> list[str]:
        """Each stacked site with its layers and shape: `decoder/*/pattern of layers 0, 2: [2, 1, 4, 8, 8]`."""
        of = {site: f" of layers {', '.join(map(str, layers))}" for site, layers in self._layers.items()}
        return [f"{site}{of.get(site, '')}: {list(np.shape(array))}" for site, array in self._arrays.items()]


def match(patterns: Iterable[str], names: Iterable[str]) -> frozenset[str]:
    """The names that match any pattern; `*` stands for anything within one step of a name, `**` for anything.

    Raises:
      ValueError: if a pattern matches no name; it lists the nearest ones.
    """
    names, found = tuple(names), set()
    for pattern in patterns:
        expression = re.escape(pattern).replace(r"\*\*", ".*").replace(r"\*", "[^/]*")
        hits = {name for name in names if re.fullmatch(expression, name)}
        if not hits:
            starred = dict.fromkeys(split(name)[0] for name in names)
            near = difflib.get_close_matches(pattern, dict.fromkeys((*starred, *names)), n=4, cutoff=0.3)
            raise ValueError(
                f"no site is called {pattern!r}; the nearest are {', '.join(near) or ', '.join(names[:4])}"
            )
        found |= hits
    return frozenset(found)


def split(name: str) -> tuple[str, int | None]:
    """A site's name with `*` for its layer, and the layer: `decoder/3/pattern` is `decoder/*/pattern` and 3."""
    found = _LAYERED.fullmatch(name)
    if not found:
        return name, None
    return f"{found[1]}/*/{found[3]}", None if found[2] == "*" else int(found[2])


def in_forward_order(names: Iterable[str]) -> list[str]:
    """Sites' names in the order in which a model reaches them, layer by layer."""

    def place(name: str) -> tuple[int, int, int]:
        site, layer = split(name)
        if layer is None:
            return _ORDER[site], 0, 0
        first = f"{site[: site.index('*')]}*/{next(iter(BLOCK_SITES))}"
        return _ORDER[first], layer, _ORDER[site]

    return sorted(names, key=place)
