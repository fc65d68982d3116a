"""Folders of the cases, written without the publisher's library."""

from __future__ import annotations

import json
import pathlib
import struct

from tests.interop import cases
from transformer.interop.families import FAMILIES
from transformer.interop.fields import Fields
from transformer.models.ledger import shapes


class Heads:
    """Which of the tensors that tell a model's heads a case has."""

    def __init__(self, case):
        self.case = case

    def __contains__(self, name):
        if "pooler" in name:
            return self.case.architecture.endswith(("Model", "ForPreTraining"))
        if name == "lm_head.weight":
            return not self.case.fields.get("tie_word_embeddings", True)
        return "For" in self.case.architecture

    def same(self, one, other):
        return False


def tensors(case) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a case's tensors, as the family's table has them.

    The numbers are a function of both, so that a wrong name or shape in the table gives other ones.
    """
    family = FAMILIES[case.family]
    config = family.read(Fields(case.fields, "case"), Heads(case))
    sizes = shapes(config)
    return {name: row.shape(sizes) for row in family.rows(config, case.fields) for name, _ in row.names(sizes)}


def write(folder: pathlib.Path, name: str, **fields) -> pathlib.Path:
    """The folder of a case, with some fields of its `config.json` replaced after its tensors were made."""
    case = cases.CASES[name]
    cases.write(folder, case, tensors(case))
    edit(folder, **fields)
    return folder


def edit(folder: pathlib.Path, **fields) -> None:
    """Replace fields of `config.json`."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def raw(path: pathlib.Path, header: dict | bytes, data: bytes = b"") -> pathlib.Path:
    """A file in the format of safetensors, byte by byte: its header may say what is not so."""
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(content)) + content + data)
    return path
