"""Text in, batches out: sources, corpora on disk, objectives, and batches as a function of (seed, step)."""

from transformer.data.batches import Batches, batches, pipeline_speed, sliding_batches, validation_batches
from transformer.data.config import SPLITS, TOKENIZERS, Data, Tfds, Tokenizer
from transformer.data.corpus import Corpus, Counts, check_fingerprint, load, prepare
from transformer.data.objectives import Example, causal
from transformer.data.sources import Document, documents

__all__ = [
    "SPLITS",
    "TOKENIZERS",
    "Batches",
    "Corpus",
    "Counts",
    "Data",
    "Document",
    "Example",
    "Tfds",
    "Tokenizer",
    "batches",
    "causal",
    "check_fingerprint",
    "documents",
    "load",
    "pipeline_speed",
    "prepare",
    "sliding_batches",
    "validation_batches",
]
