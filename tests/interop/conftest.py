"""What tests of pretrained models share."""

import jax
import pytest


@pytest.fixture
def quick_to_compile():
    """Compiling small models is what takes time; programs that are not optimised round no worse."""
    name = "jax_disable_most_optimizations"
    before = jax.config.read(name)
    jax.config.update(name, True)
    yield
    jax.config.update(name, before)
