"""Encoders."""

from __future__ import annotations

from transformer.models.config import Attention, Init, Mlp, ModelConfig, Norm, Position, Stack


def _encoder(
    depth: int, width: int, heads: int, *, vocab: int, token_types: int, epsilon: float, offset: int = 0
) -> ModelConfig:
    """Devlin et al. 2019 (arXiv:1810.04805), section 3 and appendix A.2, with the pooler, without heads."""
    stack = Stack(
        depth,
        Attention(heads, bias=True, output_bias=True, dropout=0.1),
        Mlp(4 * width, "gelu", gated=False, bias=True),
        Norm("layer", epsilon=epsilon, bias=True),
        norm_placement="post",
        position=Position("learned", offset=offset),
        embedding_norm=True,
        dropout=0.1,
    )
    init = Init(output=1.0)
    return ModelConfig(vocab, width, encoder=stack, length=512, token_types=token_types, pooler=True, init=init)


def _bert(depth: int, width: int, heads: int) -> ModelConfig:
    """With the uncased vocabulary."""
    return _encoder(depth, width, heads, vocab=30_522, token_types=2, epsilon=1e-12)


_BERT = {  # section 3: depth, width, heads
    "base": (12, 768, 12),
    "large": (24, 1024, 16),
}
_MINILM = {  # Wang et al. 2020 (arXiv:2002.10957) and the config of all-MiniLM-L6-v2: BERT made small
    "l6": (6, 384, 12),
}


def _roberta(depth: int, width: int, heads: int) -> ModelConfig:
    """Liu et al. 2019 (arXiv:1907.11692), sections 4.2 and 4.4: no segments, and a vocabulary of bytes.

    The published tables of positions begin with two rows, up to that of padding, which no token reads.
    """
    return _encoder(depth, width, heads, vocab=50_265, token_types=1, epsilon=1e-5, offset=2)


_ROBERTA = {  # table 9 and the published configs: depth, width, heads
    "base": (12, 768, 12),
    "large": (24, 1024, 16),
}

FAMILIES = {
    "bert": (_bert, _BERT),
    "roberta": (_roberta, _ROBERTA),
    "minilm": (_bert, _MINILM),
}
