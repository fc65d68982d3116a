"""A tokenizer's files: written whole or not at all, and refused in one line when they cannot be read."""

from __future__ import annotations

import json
import os
import pathlib

BYTES = "bytes.json"
CHARACTERS = "characters.json"
BPE = "tokenizer.json"  # Hugging Face's name, for the kind "published" too
VOCABULARY = "vocab.json"  # GPT-2's names, read only; Marian has a vocabulary of this name
MERGES = "merges.txt"
WORDS = "vocab.txt"  # BERT's name, read only
T5 = "spiece.model"
LLAMA = "tokenizer.model"
SOURCE = "source.spm"  # Marian's names
TARGET = "target.spm"
SETTINGS = "tokenizer_config.json"  # Hugging Face's name for what the other files leave out
KINDS = {"bytes": BYTES, "characters": CHARACTERS, "bpe": BPE}
OWNERS = {file: kind for kind, file in KINDS.items()} | {T5: "sentencepiece", LLAMA: "sentencepiece", SOURCE: "marian"}


def present(folder: pathlib.Path) -> list[str]:
    """The kinds of tokenizer whose own file lies in `folder`."""
    return [kind for kind, name in KINDS.items() if (folder / name).is_file()]


def claim(folder: str | os.PathLike[str], kind: str, name: str) -> pathlib.Path:
    """Makes `folder` ready for a tokenizer of `kind` in the file `name`.

    Raises:
      ValueError: if `folder` is a file or holds another tokenizer.
    """
    path = pathlib.Path(folder)
    if path.exists() and not path.is_dir():
        raise ValueError(f"folder={str(path)!r} is a file: give a folder for the tokenizer")
    path.mkdir(parents=True, exist_ok=True)
    for other, owner in OWNERS.items():
        if other != name and (path / other).is_file():
            raise ValueError(f"{path / other} is another tokenizer ({owner}, not {kind}): give another folder")
    return path


def write(path: pathlib.Path, content: str | bytes) -> None:
    """Writes beside `path`, then renames: a reader finds the old file or the new one, never half of either."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with scratch.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def write_json(path: pathlib.Path, content: object) -> None:
    """As `write`, of JSON on one line."""
    write(path, json.dumps(content) + "\n")


def read(path: pathlib.Path) -> str:
    """The text of `path`; raises ValueError if it is not UTF-8."""
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise damaged(path, error) from None


def read_object(path: pathlib.Path) -> dict[str, object]:
    """The JSON object in `path`; raises ValueError if it holds anything else."""
    try:
        content = json.loads(read(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise damaged(path, error) from None
    if not isinstance(content, dict):
        raise damaged(path, "it holds no JSON object")
    return content


def damaged(path: pathlib.Path, reason: object) -> ValueError:
    """The error for a file that was found but cannot be understood."""
    line = " ".join(str(reason).split())
    return ValueError(f"{path} cannot be read as a tokenizer ({line}): restore it, or train the tokenizer anew")
