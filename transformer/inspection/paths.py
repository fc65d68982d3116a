"""Path patching: what one head changes by way of chosen heads alone.

Source: Wang et al. 2022 (arXiv:2211.00593), section 3.1 and appendix B; Goldowsky-Dill et al. 2023 (arXiv:2304.05969).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import jax

from transformer.inspection.patches import resolve
from transformer.inspection.run import run
from transformer.inspection.sites import discover, split_flags
from transformer.models.transformer import Transformer
from transformer.nn.tap import Patch, Taps


class Node(NamedTuple):
    """One head at one site: `Node("decoder/*/query", 3, 5)`, in every position or in one.

    Attributes:
      site: with `*` for the layer. Of a sender `mixed`, of a receiver `query`, `key` or `value`.
      layer, head: integers, which may be traced; the head of a key or value counts among G.
      position: None for all.
    """

    site: str
    layer: jax.Array | int
    head: jax.Array | int | None = None
    position: jax.Array | int | None = None

    def patch(self, value: jax.Array) -> Patch:
        """The node set to its part of what another run captured, `[L, ...]`."""
        return Patch(self.site, value, layer=self.layer, head=self.head, position=self.position)


def path_patch(
    model: Transformer,
    params,
    tokens: jax.Array,
    other: jax.Array,
    *,
    sender: Node,
    receivers: Iterable[Node] | Node = (),
    freeze_mlp: bool = False,
    other_arguments: dict | None = None,
    **model_arguments,
) -> jax.Array:
    """Logits when the sender is as in the other run, and only the paths from it straight to the receivers know.

    Every head but the sender keeps what it mixed in its own run, so that nothing passes through other heads; what
    would reach the receivers' queries, keys or values then is put there, in a run that is otherwise untouched.
    `vmap` over a node's indices compiles once:

        by_head = jax.vmap(lambda head: path_patch(..., sender=Node("decoder/*/mixed", 0, head), receivers=receivers))

    Args:
      tokens, other: `[B, T]` ids of the run that is patched, and of the one that the sender is taken from.
      sender: a node at a `mixed` site.
      receivers: nodes at `query`, `key` or `value` sites; none: the read-out, that is the direct effect on the logits.
      freeze_mlp: whether feed-forward layers keep their own outputs too, rather than carrying the change along.
      other_arguments: what the other run's model arguments differ in, such as `source`.
      **model_arguments: as in `run`, of both runs.

    Returns:
      Logits `[B, T, V]`.

    Raises:
      ValueError: as `run`, or if a node's site cannot send or receive.
    """
    receivers = (receivers,) if isinstance(receivers, Node) else tuple(receivers)
    _check(sender, ("mixed",), "sender")
    for receiver in receivers:
        _check(receiver, ("query", "key", "value"), "receiver")
    arrays, flags = split_flags(model_arguments)
    sites = discover(model, params, tokens, arrays, flags)
    for node in (sender, *receivers):
        resolve(node.patch(0.0), sites, model.config)
    frozen = [site for site in sites if site.endswith("/mixed") or (freeze_mlp and site.endswith("/mlp/outer"))]

    _, own = run(model, params, tokens, capture=frozen, **model_arguments)
    _, theirs = run(model, params, other, capture=sender.site, **model_arguments | (other_arguments or {}))
    if theirs[sender.site].shape != own[sender.site].shape:
        raise ValueError(f"other {other.shape} and tokens {tokens.shape} differ: both need as many rows and tokens")
    patches = [Patch(site, own[site]) for site in frozen] + [sender.patch(theirs[sender.site])]
    reached = tuple(dict.fromkeys(receiver.site for receiver in receivers))
    logits, taps = run(model, params, tokens, capture=reached, patches=patches, **model_arguments)
    return _receive(model, params, tokens, receivers, taps, model_arguments) if receivers else logits


def _receive(model, params, tokens, receivers: tuple[Node, ...], taps: Taps, model_arguments: dict) -> jax.Array:
    patches = [receiver.patch(taps[receiver.site]) for receiver in receivers]
    return run(model, params, tokens, patches=patches, **model_arguments)[0]


def _check(node: Node, names: tuple[str, ...], role: str) -> None:
    if not isinstance(node, Node) or node.layer is None:
        raise ValueError(f"{node!r} cannot be a {role}: give a Node with a site and a layer")
    if "*" not in node.site or node.site.split("/")[-1] not in names:
        stack = node.site.split("/")[0]
        fits = " or ".join(f"{stack}/*/{name}" for name in names)
        raise ValueError(f"{node.site} cannot be a {role}: give a site such as {fits}")
