"""The fields of a published `config.json`: taken one by one, and an error for each that nobody took."""

from __future__ import annotations

import difflib
import re
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
HARMLESS = re.compile(
    r"""_.*|architectures|auto_map|model_type|transformers_version|torch_dtype|dtype|use_cache|torchscript|finetuning_task
    |(bos|eos|pad|sep|cls|mask|decoder_start|forced_bos|forced_eos|image|unk)_token_id|bad_words_ids|suppress_tokens
    |begin_suppress_tokens|initializer_(range|factor)|init_std|gradient_checkpointing|classif.*|num_labels|id2label|label2id
    |problem_type|task_specific_params|output_(attentions|hidden_states|scores|past)|return_dict.*|chunk_size_feed_forward
    |(max|min)(_new)?_length|(num|early|do|no|length|repetition|diversity|encoder_no|exponential)_(beams|beam_groups
    |stopping|sample|repeat_ngram_size|penalty|return_sequences|decay_length_penalty)|encoder_no_repeat_ngram_size
    |temperature|top_[kp]|typical_p|prefix|summary_.*|language|tokenizer_class|remove_invalid_values|num_return_sequences
    |pretraining_tp|cache_implementation|num_hidden_layers_unused|is_encoder_decoder|static_position_embeddings|vocab""",
    re.VERBOSE,
)
DEFAULTS = {  # of fields that any config may have; another value changes what is computed
    "add_cross_attention": False,
    "cross_attention_hidden_size": None,
    "is_decoder": False,
    "pruned_heads": {},
    "tf_legacy_loss": False,
    "tie_encoder_decoder": False,
    "use_bfloat16": False,
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
            raise ValueError(f"{self.where}: {name}={reprlib.repr(value)} has no counterpart here; there are {known}")
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
            if name in self._taken or HARMLESS.fullmatch(name):
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
