"""What tests of pretrained models share."""

import jax
import pytest

from tests.interop import folders


@pytest.fixture
def quick_to_compile():
    """Compiling small models is what takes time; programs that are not optimised round no worse."""
    name = "jax_disable_most_optimizations"
    before = jax.config.read(name)
    jax.config.update(name, True)
    yield
    jax.config.update(name, before)


@pytest.fixture
def llama(tmp_path):
    """A folder of a small Llama: two layers, and a read-out of its own."""
    return folders.write(tmp_path / "llama", "llama")
