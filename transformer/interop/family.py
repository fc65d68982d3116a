"""What a file of `families` states about one published family of models."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from transformer.interop.fields import Fields
from transformer.interop.rows import Row
from transformer.models.config import ModelConfig


class Found(Protocol):
    """The tensors of a folder, by the names that a family's table uses."""

    def __contains__(self, name: str) -> bool:
        """Whether there is such a tensor."""

    def same(self, one: str, other: str) -> bool:
        """Whether two tensors hold the same numbers."""


@dataclasses.dataclass(frozen=True)
class Family:
    """A published architecture, in both directions.

    Attributes:
      name: `model_type` in its `config.json`.
      stacks: which of `encoder` and `decoder` its models have.
      read: from the fields of `config.json` and the tensors that are there to our config.
      write: from our config and the ids of special tokens to those fields; what they do not express is found by reading
        them back.
      rows: the table of tensors for our config and their fields.
      architecture: from our config to the class that opens a saved folder.
      prefix: what the names of all tensors begin with but those of heads; files of a bare body lack it.
      heads: beginnings of the names of heads.
      renames: patterns of older names, and what they are called now.
      redundant: patterns of tensors that hold nothing to load, each with the reason.
      copies: tensors that repeat another one, by name; they are compared and dropped.
    """

    name: str
    stacks: tuple[str, ...]
    read: Callable[[Fields, Found], ModelConfig]
    write: Callable[[ModelConfig, Mapping[str, int]], dict[str, Any]]
    rows: Callable[[ModelConfig, Mapping[str, Any]], list[Row]]
    architecture: Callable[[ModelConfig], str]
    prefix: str = ""
    heads: tuple[str, ...] = ()
    renames: Mapping[str, str] = dataclasses.field(default_factory=dict)
    redundant: Mapping[str, str] = dataclasses.field(default_factory=dict)
    copies: Mapping[str, str] = dataclasses.field(default_factory=dict)
