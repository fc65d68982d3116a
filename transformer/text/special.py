"""The tokens of a published tokenizer that are no text, by their roles, and the files that name them."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Iterable, Mapping

import tokenizers

from transformer.text import storage
from transformer.text.tokenizer import END

ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
MAP = "special_tokens_map.json"
ADDED = "added_tokens.json"
DECODER = "added_tokens_decoder"  # in tokenizer_config.json
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")  # how a vocabulary of characters writes a byte
USUAL = {"unk": ("[UNK]", "<unk>"), "pad": ("[PAD]", "<pad>"), "mask": ("[MASK]", "<mask>")}  # when no file says


@dataclasses.dataclass(frozen=True)
class Special:
    """How each special token is written; None for a role that no token has."""

    bos: str | None = None
    eos: str | None = None
    unk: str | None = None
    sep: str | None = None
    pad: str | None = None
    cls: str | None = None
    mask: str | None = None

    @property
    def begin(self) -> str | None:
        """What opens a text: BERT has only a token for classification there."""
        return self.bos or self.cls

    @property
    def end(self) -> str | None:
        """What closes a text: BERT has only a separator there."""
        return self.eos or self.sep

    @property
    def names(self) -> tuple[str, ...]:
        """Every token with a role, once."""
        return tuple(dict.fromkeys(name for name in dataclasses.astuple(self) if name))

    def roles(self) -> dict[str, str | None]:
        """The tokens by role."""
        return dataclasses.asdict(self)

    def settings(self) -> dict[str, str | None]:
        """As `tokenizer_config.json` writes it."""
        return {f"{role}_token": name for role, name in self.roles().items()}


def read_settings(folder: pathlib.Path) -> dict[str, object]:
    """`tokenizer_config.json`, or nothing. Raises ValueError if it is damaged."""
    path = folder / storage.SETTINGS
    return storage.read_object(path) if path.is_file() else {}


def read_flag(folder: pathlib.Path, name: str, default: bool | None) -> bool | None:
    """A setting that is true or false, or null where that is the default; raises ValueError if it is neither."""
    value = read_settings(folder).get(name, default)
    if not isinstance(value, bool) and not (value is None and default is None):
        raise storage.damaged(folder / storage.SETTINGS, f"{name}={value!r} must be true or false")
    return value


def read_roles(folder: pathlib.Path) -> dict[str, str | None]:
    """The roles named by `tokenizer_config.json`, then by `special_tokens_map.json`; a role may be named as empty.

    Raises:
      ValueError: if a file is damaged, or a token is neither a string nor an object with a `content`.
    """
    named: dict[str, str | None] = {}
    for path in (folder / storage.SETTINGS, folder / MAP):
        content = storage.read_object(path) if path.is_file() else {}
        for role in ROLES:
            key = f"{role}_token"
            if key in content and role not in named:
                token = content[key]
                token = token.get("content") if isinstance(token, dict) else token
                if token is not None and not isinstance(token, str):
                    raise storage.damaged(path, f"{key}={token!r} is no string")
                named[role] = token or None
    return named


def read_added(folder: pathlib.Path) -> dict[int, tokenizers.AddedToken]:
    """The tokens that were added to a vocabulary, by id: from `tokenizer_config.json`, or else `added_tokens.json`.

    Raises:
      ValueError: if one has no id or no content.
    """
    settings = read_settings(folder)
    if settings.get(DECODER):
        path, entries = folder / storage.SETTINGS, settings[DECODER]
    else:
        path = folder / ADDED
        content = storage.read_object(path) if path.is_file() else {}
        entries = {index: {"content": token} for token, index in content.items()}
    try:
        added = {int(index): _added(entry) for index, entry in entries.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise storage.damaged(path, f"{DECODER}: {type(error).__name__} {error}") from None
    return dict(sorted(added.items()))


def _added(entry: Mapping[str, object]) -> tokenizers.AddedToken:
    flags = {name: bool(entry[name]) for name in FLAGS if name in entry}
    return tokenizers.AddedToken(entry["content"], **flags)


def complete(
    named: Mapping[str, str | None], around: tuple[Iterable[str], Iterable[str]], names: Iterable[str]
) -> Special:
    """All roles, where the files may name only some, or none, because each published class has its own defaults.

    Args:
      named: as `read_roles` gives it; what is named there, as empty too, stays.
      around: the tokens that the tokenizer puts before a text, and after it.
      names: the special tokens of its vocabulary.
    """
    roles, names = dict(named), tuple(names)
    before, after = (tuple(tokens) for tokens in around)
    if before and not {"bos", "cls"} & set(roles):
        roles["cls" if before[0] == "[CLS]" else "bos"] = before[0]
    if not {"eos", "sep"} & set(roles):
        if after:
            roles["sep" if after[-1] == "[SEP]" else "eos"] = after[-1]
        elif END in names:
            roles["eos"] = END
    for role, usual in USUAL.items():
        roles.setdefault(role, next((name for name in usual if name in names), None))
    return Special(**roles)
