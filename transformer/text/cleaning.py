"""The spaces that some published tokenizers take away from decoded English, because their words were cut apart.

The setting is `clean_up_tokenization_spaces` of `tokenizer_config.json`; the rules and their order are those of the
transformers library.
"""

from __future__ import annotations

import re

MARKS = (" .", " ?", " !", " ,")
ENDINGS = (" n't", " 'm", " 's", " 've", " 're")
# A rule reads a space and up to three characters of these, and an earlier rule may have joined them.
UNSETTLED = re.compile(r"(?: [.?!,'ntmsver]{0,3})*\Z")


def clean(text: str) -> str:
    """`text` without the spaces before marks and shortened words: `"I do n't ."` becomes `"I don't."`."""
    for mark in MARKS:
        text = text.replace(mark, mark[1:])
    text = text.replace(" ' ", "'")
    for ending in ENDINGS:
        text = text.replace(ending, ending[1:])
    return text


def settled(text: str) -> int:
    """How many characters of `text` can be cleaned by themselves, whatever follows them."""
    return UNSETTLED.search(text).start()
