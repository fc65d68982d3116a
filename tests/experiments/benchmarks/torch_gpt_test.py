"""That the peer computes the same function, so that what is compared is the same work."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch", reason="the extra `oracle` is not installed")

from experiments.benchmarks import sizes, training
from experiments.benchmarks.torch_gpt import GPT, copy_weights
from transformer import models

pytestmark = pytest.mark.filterwarnings("ignore")

TOLERANCE = {"rtol": 2e-5, "atol": 2e-5}  # float32 on both sides, with sums in another order


def twins(name):
    """Our model with random parameters, biases and scales too, and theirs with the same ones."""
    config = sizes.config(name, tiny=True)
    model, ids = models.Transformer(config), np.random.default_rng(0).integers(0, config.vocab, (2, config.length))
    params = model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    leaves = [leaf + 0.1 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    params, network = jax.tree.unflatten(structure, leaves), GPT(config)
    copy_weights(network, params)
    assert sum(leaf.size for leaf in leaves) == sum(parameter.numel() for parameter in network.parameters())
    return model, params, network, ids


@pytest.mark.parametrize("name", ["char", "gpt2"])
def test_logits_are_ours_for_the_same_weights(name):
    model, params, network, ids = twins(name)
    with torch.no_grad():
        theirs = network(torch.from_numpy(ids)).numpy()
    np.testing.assert_allclose(theirs, model.apply({"params": params}, jnp.asarray(ids, jnp.int32)), **TOLERANCE)


def test_a_training_step_changes_the_weights_as_ours_does():
    model, params, network, _ = twins("gpt2")
    step, state = training.our_step(model.config)
    batch = training.random_batch(model.config, 2)
    after, metrics = jax.jit(step)(state.replace(params=params), batch)
    program = training.torch_program(network, network, model.config, 2, "float32", "cpu", lambda loss: loss)
    np.testing.assert_allclose(float(program()), metrics["loss"], rtol=1e-5)
    theirs = GPT(model.config)
    copy_weights(theirs, after.params)
    pairs = zip(theirs.parameters(), network.parameters(), strict=True)
    gaps = np.concatenate([np.ravel((ours - parameter).detach().numpy()) for ours, parameter in pairs])
    # Adam's first step is the sign of the gradient; of what no output depends on, as keys' biases, that is rounding.
    assert np.mean(np.abs(gaps) > 1e-5) < 0.01


def test_a_config_that_it_does_not_compute_is_refused():
    with pytest.raises(ValueError, match="this network is a GPT-2 without dropout"):
        GPT(models.get("llama3.2-1b"))
