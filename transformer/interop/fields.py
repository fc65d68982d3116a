"""The fields of a published `config.json`: taken one by one, and an error for each that nobody took."""

from __future__ import annotations

import difflib
import reprlib
import sys
from typing import Any

from transformer.models.config import ModelConfig

REQUIRED = object()
LARGEST = 2**31 - 1  # ids and positions are 32-bit integers
LAYERS = 10_000  # far more than any model has: a damaged file may ask for billions, and lists are made of them
WORDS = {  # what JSON calls them
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "an object",
    type(None): "null",
}

# What says nothing about the function that the model computes: bookkeeping, ids of special tokens, initial values,
# labels of classifiers, and settings of text generation.
# fmt: off
HARMLESS = frozenset((
    "architectures", "auto_map", "bad_words_ids", "begin_suppress_tokens", "bos_token_id", "cache_implementation",
    "chunk_size_feed_forward", "cls_token_id", "custom_pipelines", "decoder_start_token_id", "diversity_penalty",
    "do_sample", "dtype", "early_stopping", "encoder_no_repeat_ngram_size", "eos_token_id",
    "exponential_decay_length_penalty", "finetuning_task", "forced_bos_token_id", "forced_eos_token_id",
    "gradient_checkpointing", "id2label", "image_token_id", "init_std", "initializer_factor", "initializer_range",
    "is_encoder_decoder", "label2id", "language", "length_penalty", "mask_token_id", "max_length", "max_new_tokens",
    "min_length", "min_new_tokens", "model_type", "neftune_noise_alpha", "no_repeat_ngram_size", "num_beam_groups",
    "num_beams", "num_labels", "num_return_sequences", "output_attentions", "output_hidden_states", "output_past",
    "output_scores", "pad_token_id", "prefix", "pretraining_tp", "problem_type", "remove_invalid_values",
    "repetition_penalty", "sep_token_id", "suppress_tokens", "task_specific_params", "temperature", "tokenizer_class",
    "top_k", "top_p", "torch_dtype", "torchscript", "transformers.js_config", "transformers_version", "typical_p",
    "unk_token_id", "unsloth_fixed", "unsloth_version", "use_cache", "xla_device",
))
# fmt: on
PREFIXES = ("_", "classif", "return_dict", "summary_")  # of more of the same
DEFAULTS = {  # of fields that any config may have; another value changes what is computed
    "add_cross_attention": False,
    "cross_attention_hidden_size": None,
    "is_decoder": False,
    "is_llama_config": True,
    "pruned_heads": {},
    "rope_interleaved": False,
    "tf_legacy_loss": False,
    "tie_encoder_decoder": False,
    "use_bfloat16": False,
    "use_mrope": False,
}


class Fields:
    """Reads a config so that nothing in it is overlooked.

    Args:
      values: the JSON object.
      where: the file, for errors.
    """

    def __init__(self, values: dict[str, Any], where: str):
        self.values, self.where, self._taken = values, where, set()

    def take(self, name: str, default: Any = REQUIRED, kind: type | tuple[type, ...] | None = None) -> Any:
        """A field's value, or the default that the publisher's library gives it where the file leaves it out.

        Raises:
          ValueError: if it is required and missing, or of another type than `kind` (or its default).
        """
        self._taken.add(name)
        value = self.values.get(name, default)
        if value is REQUIRED:
            raise ValueError(f"{self.where} has no field {name!r}, which the architecture needs: restore the file")
        kinds = kind if isinstance(kind, tuple) else (kind or type(default),)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            expected = " or ".join(WORDS[kind] for kind in kinds)
            raise ValueError(
                f"{self.where}: {name}={reprlib.repr(value)} is of the wrong type: {expected} was expected"
            )
        return value

    def size(self, name: str, default: Any = REQUIRED, most: int = LARGEST, null: bool = False) -> int:
        """A whole number from 1 to `most`; raises ValueError for others.

        Args:
          null: whether None is a value too; it is where it is the default.
        """
        value = self.take(name, default, (int, type(None)) if null or default is None else int)
        if value is not None and not 1 <= value <= most:
            raise ValueError(f"{self.where}: {name}={reprlib.repr(value)} cannot work: it must lie in [1, {most}]")
        return value

    def layers(self, name: str, default: Any = REQUIRED) -> int:
        """The depth of a stack; errors as of `size`."""
        return self.size(name, default, LAYERS)

    def number(self, name: str, default: Any = REQUIRED, null: bool = False) -> float:
        """A finite number; raises ValueError for others; `null` as of `size`."""
        value = self.take(name, default, (int, float, type(None)) if null or default is None else (int, float))
        if value is not None and not abs(value) <= sys.float_info.max:
            raise ValueError(f"{self.where}: {name}={reprlib.repr(value)} cannot work: it must be finite")
        return None if value is None else float(value)

    def choose(self, name: str, table: dict[Any, Any], default: Any = REQUIRED) -> Any:
        """What a table makes of a field's value; raises ValueError if it has no such entry."""
        value = self.take(name, default, (str, bool, int, type(None)))
        if value not in table:
            known = ", ".join(map(str, table))
            raise ValueError(
                f"{self.where}: {name}={reprlib.repr(value)} has no counterpart here; choose one of {known}"
            )
        return table[value]

    def expect(self, name: str, wanted: Any, default: Any = REQUIRED) -> None:
        """Raises ValueError unless a field, or its default, has the one value that has a counterpart here."""
        self._taken.add(name)
        value = self.values.get(name, wanted if default is REQUIRED else default)
        if value != wanted:
            raise ValueError(f"{self.where}: {name}={reprlib.repr(value)} has no counterpart here; only {wanted!r} has")

    def ignore(self, *names: str) -> None:
        """Fields that change nothing in this architecture."""
        self._taken.update(names)

    def finish(self) -> None:
        """Raises ValueError, naming the first field that nobody took and that may change what is computed."""
        for name, value in self.values.items():
            if name in self._taken or name in HARMLESS or name.startswith(PREFIXES):
                continue
            if name in DEFAULTS and value == DEFAULTS[name]:
                continue
            near = difflib.get_close_matches(name, self._taken, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            field = f"the field {name}={reprlib.repr(value)}"
            raise ValueError(f"{self.where}: {field} is not known, so the model may not be the same{hint}")


ACTIVATIONS = {  # theirs to ours; the first of several names for one of ours is the one that is written
    "relu": "relu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
}


def activation_name(ours: str) -> str:
    """Their name of one of our activations."""
    return next(theirs for theirs, name in ACTIVATIONS.items() if name == ours)


def check_heads(config: ModelConfig, role: str) -> None:
    """Raises ValueError for heads among which the width cannot be divided, for families whose heads share it."""
    stack = getattr(config, role)
    if config.width % stack.attention.heads:
        raise ValueError(f"{role}.attention.head_width={config.head_width(stack)}")
