"""Text in, batches out: sources, corpora on disk, objectives, and batches as a function of (seed, step)."""

from transformer.data.batches import batches, pipeline_speed, validation_batches
from transformer.data.bitext import Bitext
from transformer.data.config import SPLITS, TOKENIZERS, Data, Objective, Pairs, Tfds, Tokenizer
from transformer.data.corpora import load, prepare
from transformer.data.corpus import Corpus, Counts
from transformer.data.iteration import Batches
from transformer.data.objectives import Example, causal
from transformer.data.pairs import Pair, pairs
from transformer.data.preparing import Changed, begins_with, check_fingerprint
from transformer.data.sources import Document, documents
from transformer.data.streams import sliding_batches

__all__ = [
    "SPLITS",
    "TOKENIZERS",
    "Batches",
    "Bitext",
    "Changed",
    "Corpus",
    "Counts",
    "Data",
    "Document",
    "Example",
    "Objective",
    "Pair",
    "Pairs",
    "Tfds",
    "Tokenizer",
    "batches",
    "begins_with",
    "causal",
    "check_fingerprint",
    "documents",
    "load",
    "pairs",
    "pipeline_speed",
    "prepare",
    "sliding_batches",
    "validation_batches",
]
