"""The JSON files of a folder."""

from __future__ import annotations

import json
import pathlib
from typing import Any

CONFIG = "config.json"


def read(path: pathlib.Path, kind: type = dict) -> Any:
    """The object, or the list, in a file; raises ValueError if it holds anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}): fetch it again") from None
    if not isinstance(content, kind):
        raise ValueError(f"{path} holds no JSON {'object' if kind is dict else 'list'}: fetch it again")
    return content
