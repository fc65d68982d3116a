"""Pretrained models in and out: folders in the format of Hugging Face, one file for each family.

A family's file says which of their tensors is which of our parameters, with the arrangement of axes as a pattern that
is read in both directions, and which field of their `config.json` is which of our `ModelConfig`. What is not understood
is an error that names it.
"""

from transformer.interop.generation import Generation, generation
from transformer.interop.hub import resolve
from transformer.interop.load import is_folder, load
from transformer.interop.save import save
from transformer.interop.sentences import SentenceEncoder, sentence_encoder

__all__ = ["Generation", "SentenceEncoder", "generation", "is_folder", "load", "resolve", "save", "sentence_encoder"]
