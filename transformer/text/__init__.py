"""Text to ids and back: bytes, characters, byte-level BPE; trained, saved, loaded, and decoded as a stream.

The tokenizers of published models are loaded from the files that come with them.
"""

from transformer.text.bpe import BPE
from transformer.text.byte import Bytes
from transformer.text.characters import Characters
from transformer.text.kinds import load, train
from transformer.text.marian import Marian
from transformer.text.published import Published
from transformer.text.sentencepiece import SentencePiece
from transformer.text.stream import StreamDecoder
from transformer.text.tokenizer import END, Tokenizer

__all__ = [
    "BPE",
    "END",
    "Bytes",
    "Characters",
    "Marian",
    "Published",
    "SentencePiece",
    "StreamDecoder",
    "Tokenizer",
    "load",
    "train",
]
