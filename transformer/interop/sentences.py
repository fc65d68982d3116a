"""Encoders that turn a sentence into one vector, such as MiniLM (Reimers and Gurevych 2019, arXiv:1908.10084)."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from transformer import text
from transformer.interop import files, hub
from transformer.interop.fields import Fields
from transformer.interop.load import load
from transformer.models.transformer import Transformer

MODULES = "modules.json"
POOLING = "1_Pooling/config.json"
LENGTH = "sentence_bert_config.json"
MULTIPLE = 16  # lengths are rounded up to these, so that batches share compiled programs


@dataclasses.dataclass(frozen=True)
class SentenceEncoder:
    """The mean of an encoder's outputs over the real tokens of a sentence, of length 1 if `normalize`.

        encoder = sentence_encoder("path/to/all-MiniLM-L6-v2")
        vectors = encoder(["The mole dug.", "One mole of carbon."])  # [2, D]

    Attributes:
      length: tokens of a sentence that are read, special ones included.
    """

    model: Transformer
    params: dict
    tokenizer: text.Tokenizer
    length: int
    normalize: bool

    def __call__(self, sentences: Sequence[str], batch_size: int = 32) -> np.ndarray:
        """One vector for each sentence: `[N, D]` float32."""
        if isinstance(sentences, str):
            raise ValueError("sentences must be a list of strings, not one string: pass [sentence]")
        blocks = [
            _embed(self.model, self.params, *self.tokens(sentences[start : start + batch_size]), self.normalize)
            for start in range(0, len(sentences), batch_size)
        ]
        return np.concatenate(blocks) if blocks else np.zeros((0, self.model.config.width), np.float32)

    def tokens(self, sentences: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids with their special tokens, padded on the right: `[B, T]` int32, and `[B, T]` booleans, True = real."""
        rows = [self._row(sentence) for sentence in sentences]
        longest = max(map(len, rows))
        width = min(max(1, -(-longest // MULTIPLE)) * MULTIPLE, self.length)
        ids = np.full((len(rows), width), self.tokenizer.pad or 0, np.int32)
        mask = np.arange(width) < np.array([len(row) for row in rows])[:, None]
        ids[mask] = np.concatenate(rows)
        return ids, mask

    def _row(self, sentence: str) -> np.ndarray:
        ids = self.tokenizer.encode(sentence, special=True)
        return ids if len(ids) <= self.length else np.append(ids[: self.length - 1], ids[-1])


def sentence_encoder(folder: str | os.PathLike[str], *, dtype: str = "float32") -> SentenceEncoder:
    """A sentence encoder from a folder of `sentence-transformers`: `load`, and how its outputs are pooled.

    Raises:
      FileNotFoundError, ValueError: as `load`, or if the folder pools in another way than by the mean.
    """
    folder = hub.resolve(folder)
    normalize = _normalizes(folder)
    _check_pooling(folder)
    length = _length(folder)
    model, params, tokenizer = load(folder, dtype=dtype)
    if tokenizer is None or model.config.encoder is None or model.config.decoder is not None:
        raise ValueError(f"{folder} is no sentence encoder: an encoder alone and its tokenizer are needed")
    length = min(length or model.config.length, model.config.length)
    return SentenceEncoder(model, params, tokenizer, length, normalize)


def _normalizes(folder: pathlib.Path) -> bool:
    """Whether `modules.json` ends in a normalisation; raises ValueError for a module without a counterpart."""
    if not (folder / MODULES).is_file():
        return False  # as the publisher's library then does
    modules = [module if isinstance(module, dict) else {} for module in files.read(folder / MODULES, list)]
    kinds = [str(module.get("type", "")).rsplit(".", 1)[-1] for module in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise ValueError(
            f"{folder / MODULES} chains {', '.join(kinds)}; Transformer, Pooling and, at the end, Normalize are known"
        )
    return kinds[-1] == "Normalize"


def _check_pooling(folder: pathlib.Path) -> None:
    path = folder / POOLING
    if not path.is_file():
        return
    content = files.read(path)
    modes = [name for name, value in content.items() if name.startswith("pooling_mode") and value not in (False, None)]
    if modes not in (["pooling_mode_mean_tokens"], ["pooling_mode"]) or content.get("pooling_mode", "mean") != "mean":
        raise ValueError(f"{path} asks for {', '.join(modes) or 'no pooling'}; only the mean over tokens is known")


def _length(folder: pathlib.Path) -> int | None:
    """The tokens of a sentence that the folder asks for; raises ValueError for what has no counterpart."""
    if not (folder / LENGTH).is_file():
        return None
    fields = Fields(files.read(folder / LENGTH), str(folder / LENGTH))
    fields.expect("do_lower_case", False)  # the tokenizer's own is another field
    length = fields.size("max_seq_length", None)
    fields.finish()
    return length


@functools.partial(jax.jit, static_argnames=("model", "normalize"))
def _embed(model: Transformer, params: dict, ids: jax.Array, mask: jax.Array, normalize: bool) -> jax.Array:
    hidden = model.apply({"params": params}, ids, mask=mask, method="encode").astype(jnp.float32)  # [B, T, D]
    mean = jnp.sum(hidden * mask[..., None], axis=1) / jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)
    return mean / jnp.maximum(jnp.linalg.norm(mean, axis=-1, keepdims=True), 1e-12) if normalize else mean
