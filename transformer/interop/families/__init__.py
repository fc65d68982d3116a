"""The published families, one file each. Where several have a model, it is saved as the first of them."""

from transformer.interop.families import (
    bert,
    gemma,
    gemma2,
    gpt2,
    gpt_neox,
    llama,
    marian,
    mistral,
    mixtral,
    qwen2,
    qwen3,
    roberta,
    t5,
)
from transformer.interop.family import Family

_FILES = (gpt2, gpt_neox, llama, mistral, mixtral, qwen2, qwen3, gemma, gemma2, bert, roberta, t5, marian)
FAMILIES: dict[str, Family] = {file.FAMILY.name: file.FAMILY for file in _FILES}
