"""What prepared datasets hand on as text; that they are opened and read is seen where they are used."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from transformer.data import datasets


def test_text_comes_as_bytes_or_as_text():
    assert datasets.text("für".encode(), where="row 1", setting="a") == datasets.text("für", where="row 1", setting="a")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "row 1 holds int, not text: choose another data.tfds.feature"),
        (b"f\xfcr", "row 1 is not UTF-8 (byte 1): clean it when preparing the dataset"),
    ],
)
def test_refuses_what_is_not_text(value, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        datasets.text(value, where="row 1", setting="data.tfds.feature")


def test_the_command_for_a_dataset_of_text_finds_its_code(tmp_path):
    with pytest.raises(ValueError, match="is not prepared") as caught:
        datasets.open_dataset("gsm8k", str(tmp_path), where="data.path='tfds:gsm8k'", shelf="text")
    command = str(caught.value).partition('run python -c "')[2].removesuffix('"')
    shown = command.replace("tfds.builder", "print(tfds.builder").replace("download_and_prepare()", "info.name)")
    process = subprocess.run([sys.executable, "-c", shown], check=True, capture_output=True, text=True)
    assert process.stdout.strip() == "gsm8k"
