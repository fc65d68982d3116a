"""What tests of pretrained models share."""

import pytest

from tests.interop import folders


@pytest.fixture
def llama(tmp_path):
    """A folder of a small Llama: two layers, and a read-out of its own."""
    return folders.write(tmp_path / "llama", "llama")
