from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer import inspection
from transformer.inspection import Node, Patch


def by_hand(reference, model, params, calls, sender, receivers, freeze_mlp):
    """The recipe of Wang et al., with edits of the NumPy model: four passes, each site by its name.

    Args:
      sender, receivers: `(site, head)` with the layer's number in the site.
      calls: the arguments of the run that is patched, and of the other.
    """
    own, theirs = reference(model, params), reference(model, params)
    own(**calls[0])
    theirs(**calls[1])

    def freeze(site, x):
        if site.endswith("/mixed") or (freeze_mlp and site.endswith("/mlp/outer")):
            x = own.taps[site].copy()
        if site == sender[0]:
            x[:, :, sender[1]] = theirs.taps[site][:, :, sender[1]]
        return x

    frozen = reference(model, params, freeze)
    logits = frozen(**calls[0])

    def receive(site, x):
        for name, head in receivers:
            if site == name:
                x = x.copy()
                x[:, :, head] = frozen.taps[site][:, :, head]
        return x

    return reference(model, params, receive)(**calls[0]) if receivers else logits


@pytest.mark.parametrize("freeze_mlp", [False, True])
@pytest.mark.parametrize(
    "sender, receivers",
    [
        (("decoder/0/mixed", 1), [("decoder/1/query", 2)]),
        (("decoder/0/mixed", 3), [("decoder/1/key", 0), ("decoder/1/value", 1), ("decoder/1/query", 0)]),
        (("decoder/0/cross/mixed", 0), [("decoder/1/cross/query", 1)]),
        (("encoder/0/mixed", 2), [("decoder/0/cross/key", 1), ("decoder/1/cross/value", 0)]),
        (("decoder/1/mixed", 2), []),
        (("encoder/1/mixed", 0), []),
    ],
    ids=str,
)
def test_it_is_the_four_passes_of_the_numpy_model(build, reference, sender, receivers, freeze_mlp):
    model, params, tokens, arguments = build("encoder and decoder")
    calls = [
        {"tokens": tokens, **arguments},
        {"tokens": (tokens + 3) % 11, "source": (arguments["source"] + 2) % 11},
    ]
    expected = by_hand(reference, model, params, calls, sender, receivers, freeze_mlp)

    def node(site, head):
        role, layer, rest = site.split("/", 2)
        return Node(f"{role}/*/{rest}", int(layer), head)

    logits = inspection.path_patch(
        model, params, tokens, calls[1]["tokens"], sender=node(*sender), receivers=[node(*r) for r in receivers],
        freeze_mlp=freeze_mlp, other_arguments={"source": calls[1]["source"]}, **arguments,
    )  # fmt: skip
    np.testing.assert_allclose(logits, expected, rtol=3e-4, atol=3e-4)
    changes = np.abs(expected - reference(model, params)(**calls[0])).max()
    assert changes > 1e-3 or sender[0].startswith("encoder/1")  # frozen cross-attention hides the encoder's end


def test_from_the_last_layer_the_direct_effect_is_the_whole_effect(build):
    model, params, tokens, _ = build("decoder", mlp=None)
    other = (tokens + 3) % 11
    direct = inspection.path_patch(model, params, tokens, other, sender=Node("decoder/*/mixed", 1, 2))
    _, theirs = inspection.run(model, params, other, capture="decoder/1/mixed")
    patch = Patch("decoder/1/mixed", theirs["decoder/1/mixed"], head=2)
    whole, _ = inspection.run(model, params, tokens, patches=patch)
    np.testing.assert_allclose(direct, whole, rtol=1e-5, atol=1e-5)


def test_vmap_over_senders_is_a_loop(build):
    model, params, tokens, _ = build("decoder")
    receivers = [Node("decoder/*/key", 1, 0, position=2), Node("decoder/*/value", 1, 1)]

    def one(head):
        sender = Node("decoder/*/mixed", 0, head)
        return inspection.path_patch(model, params, tokens, (tokens + 3) % 11, sender=sender, receivers=receivers)

    looped = jnp.stack([one(head) for head in range(4)])
    np.testing.assert_allclose(jax.jit(jax.vmap(one))(jnp.arange(4)), looped, rtol=1e-5, atol=1e-5)
    assert np.std(looped, axis=0).max() > 1e-3


def test_one_receiver_is_a_list_of_one_and_both_runs_are_of_one_shape(build):
    model, params, tokens, _ = build("decoder")
    other, sender, receiver = (tokens + 3) % 11, Node("decoder/*/mixed", 0, 1), Node("decoder/*/key", 1, 0)
    one, several = (
        inspection.path_patch(model, params, tokens, other, sender=sender, receivers=receivers)
        for receivers in (receiver, [receiver])
    )
    np.testing.assert_array_equal(one, several)
    for short in (other[:, :1], other[:1]):
        with pytest.raises(ValueError, match=r"other \(.*\) and tokens \(2, 5\) differ"):
            inspection.path_patch(model, params, tokens, short, sender=sender)


@pytest.mark.parametrize(
    "sender, receivers, message",
    [
        (
            Node("decoder/0/mixed", 0, 1),
            [],
            r"decoder/0/mixed cannot be a sender: give a site such as decoder/\*/mixed",
        ),
        (Node("decoder/*/query", 0, 1), [], r"decoder/\*/query cannot be a sender"),
        (
            Node("decoder/*/mixed", 0, 1),
            [Node("decoder/*/mixed", 1, 1)],
            r"decoder/\*/mixed cannot be a receiver: .* decoder/\*/query or decoder/\*/key or decoder/\*/value",
        ),
        (Node("decoder/*/mixed", None, 1), [], r"cannot be a sender: give a Node with a site and a layer"),
        (Node("decoder/*/mixed", 0, 1), ["decoder/*/key"], r"'decoder/\*/key' cannot be a receiver: give a Node"),
        (Node("decoder/*/mixed", 2, 1), [], r"decoder/\*/mixed: layer=2 is out of range"),
        (Node("decoder/*/mixed", 0, 1), [Node("decoder/*/key", 1, 2)], r"decoder/\*/key: head=2 is out of range"),
        (Node("encoder/*/mixed", 0, 1), [], r"no site is called 'encoder/\*/mixed'"),
    ],
)
def test_what_cannot_work_is_refused(build, sender, receivers, message):
    model, params, tokens, _ = build("decoder")
    with pytest.raises(ValueError, match=message):
        inspection.path_patch(model, params, tokens, tokens, sender=sender, receivers=receivers)
