"""What tests of every room share."""

import os
import pathlib

import pytest


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of corpora and published files named by TRANSFORMER_DATA, or beside the repository; else skips."""
    named = os.environ.get("TRANSFORMER_DATA")
    beside = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = pathlib.Path(named) if named else beside
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}: name one that holds the data in TRANSFORMER_DATA")
    return folder
