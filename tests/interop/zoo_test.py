"""Every published size in the zoo has a family that it would be saved as, or a field that no family has."""

import pytest

from transformer import models
from transformer.interop.save import family_of

FAMILIES = {
    "gpt2": "gpt2",
    "pythia": "gpt_neox",
    "llama2": "llama",
    "llama3": "llama",
    "llama3.2": "llama",
    "mistral": "mistral",
    "mixtral": "mixtral",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "bert": "bert",
    "minilm": "bert",
    "roberta": "roberta",
    "t5": "t5",
    "t5-v1.1": "t5",
    "marian": "marian",
    "gpt3": "gpt2",
    "tiny": None,
    "transformer": None,
}
REFUSED = {  # the family that is nearest, and what it has no counterpart for
    "transformer-base": r"marian, .*attention\.bias=False",
    "transformer-big": r"marian, .*attention\.bias=False",
    "gpt3-1.3b": r"gpt2, .*decoder\.attention\.head_width=128",  # as printed, 24 heads of 128 in a width of 2,048
    "gpt3-13b": r"gpt2, .*decoder\.attention\.head_width=128",  # as printed, 40 heads of 128 in a width of 5,140
    "tiny-encoder": r"bert, .*token_types=0",
    "tiny-both": r"t5, .*encoder\.attention\.scale=0\.25, .* more",
}


@pytest.mark.parametrize("name", models.names())
def test_a_published_size_is_saved_as_its_family(name):
    config = models.get(name)
    if name in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[name]) as caught:
            family_of(config)
        assert "\n" not in str(caught.value)
        return
    expected = "llama" if name == "tiny-decoder" else FAMILIES[name.rpartition("-")[0]]
    assert family_of(config).name == expected
