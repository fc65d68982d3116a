"""The fields of a published `config.json`: taken one by one, and an error for each that nobody took."""

from __future__ import annotations

import difflib
import re
from typing import Any

REQUIRED = object()

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
        kind = kind or (type(default) if isinstance(default, (bool, int, float, str)) else None)
        kind = (int, float) if kind is float else kind
        if kind is not None and not (isinstance(value, kind) and (kind is bool or not isinstance(value, bool))):
            raise ValueError(f"{self.where}: {name}={value!r} is of the wrong type; such as {default!r} was expected")
        return value

    def size(self, name: str, default: Any = REQUIRED) -> int:
        """A positive whole number; None stays None where that is the default."""
        value = self.take(name, default, (int, type(None)) if default is None else int)
        if value is not None and value < 1:
            raise ValueError(f"{self.where}: {name}={value!r} cannot work: it must be positive")
        return value

    def choose(self, name: str, table: dict[Any, Any], default: Any = REQUIRED) -> Any:
        """What a table makes of a field's value; raises ValueError if it has no such entry."""
        value = self.take(name, default, (str, bool, int, type(None)))
        if value not in table:
            known = ", ".join(map(str, table))
            raise ValueError(f"{self.where}: {name}={value!r} has no counterpart here; there are {known}")
        return table[value]

    def expect(self, name: str, wanted: Any, default: Any = REQUIRED) -> None:
        """Raises ValueError unless a field, or its default, has the one value that has a counterpart here."""
        self._taken.add(name)
        value = self.values.get(name, wanted if default is REQUIRED else default)
        if value != wanted:
            raise ValueError(f"{self.where}: {name}={value!r} has no counterpart here; only {wanted!r} has")

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
            raise ValueError(
                f"{self.where}: the field {name}={value!r} is not known, so the model may not be the same{hint}"
            )


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
