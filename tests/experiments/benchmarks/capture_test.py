import jax.numpy as jnp
import pytest

from experiments.benchmarks import capture, sizes


def test_patterns_that_were_not_kept_are_no_result():
    config = sizes.config("gpt2", tiny=True)
    pattern = jnp.zeros((1, config.decoder.attention.heads, 8, 8))
    capture._check_patterns([pattern] * config.decoder.depth, config, 8)
    for kept in ([pattern], [None] * config.decoder.depth, [pattern[..., 1:]] * config.decoder.depth):
        with pytest.raises(RuntimeError, match="not every layer's pattern was kept"):
            capture._check_patterns(kept, config, 8)


def test_ours_keeps_every_pattern():
    capture.ours("capture", tiny=True, length=8, device="cpu")()
