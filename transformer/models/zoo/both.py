"""Encoders with decoders."""

from __future__ import annotations

from transformer.models.config import Attention, Init, Mlp, ModelConfig, Norm, Position, Readout, Stack


def _original(width: int, heads: int, mlp: int, dropout: float) -> ModelConfig:
    """Vaswani et al. 2017 (arXiv:1706.03762), sections 3 and 5.4; projections of attention have no bias, as printed."""
    stack = Stack(
        depth=6,
        attention=Attention(heads),
        mlp=Mlp(mlp, "relu", gated=False, bias=True),
        norm=Norm("layer", epsilon=1e-6, bias=True),
        norm_placement="post",
        position=Position("sinusoidal"),
        dropout=dropout,
    )
    init = Init("xavier", scale=1.0, embedding=width**-0.5, output=1.0)
    return ModelConfig(37_000, width, encoder=stack, decoder=stack, length=512, embedding_scale=True, init=init)


_ORIGINAL = {  # table 3: width, heads, mlp, dropout
    "base": (512, 8, 2048, 0.1),
    "big": (1024, 16, 4096, 0.3),
}


def _marian(depth: int, width: int, heads: int, mlp: int, vocab: int) -> ModelConfig:
    """Junczys-Dowmunt et al. 2018 (arXiv:1804.00344): the original, with biases everywhere and SiLU."""
    stack = Stack(
        depth,
        Attention(heads, bias=True, output_bias=True),
        Mlp(mlp, "silu", gated=False, bias=True),
        Norm("layer", epsilon=1e-5, bias=True),
        norm_placement="post",
        position=Position("sinusoidal", halves=True),
        dropout=0.1,
    )
    init = Init("xavier", scale=1.0, embedding=width**-0.5, output=1.0)
    readout = Readout(bias=True)
    return ModelConfig(
        vocab, width, encoder=stack, decoder=stack, length=512, embedding_scale=True, readout=readout, init=init
    )


_MARIAN = {  # the published config of OPUS-MT from English to German: depth of each stack, width, heads, mlp, vocab
    "base": (6, 512, 8, 2048, 58_101),
}


def _t5(depth: int, width: int, heads: int, head_width: int, mlp: Mlp, readout: Readout, dropout: float) -> ModelConfig:
    """Raffel et al. 2020 (arXiv:1910.10683), section 2.1: scores are not scaled, one relative bias for all layers."""
    stack = Stack(
        depth,
        Attention(heads, head_width=head_width, scale=1.0, dropout=dropout),
        mlp,
        Norm("rms", epsilon=1e-6),
        position=Position("relative", buckets=32, distance=128),
        dropout=dropout,
    )
    init = Init(embedding=1.0, output=1.0)
    return ModelConfig(32_128, width, encoder=stack, decoder=stack, length=512, readout=readout, init=init)


def _t5_v1_0(depth: int, width: int, heads: int, head_width: int, mlp: int) -> ModelConfig:
    feed_forward = Mlp(mlp, "relu", gated=False, dropout=0.1)
    return _t5(depth, width, heads, head_width, feed_forward, Readout(scale=True), dropout=0.1)


_T5 = {  # section 3.7 and the published configs: depth of each stack, width, heads, head width, mlp
    "small": (6, 512, 8, 64, 2048),
    "base": (12, 768, 12, 64, 3072),
    "large": (24, 1024, 16, 64, 4096),
    "3b": (24, 1024, 32, 128, 16_384),
    "11b": (24, 1024, 128, 128, 65_536),
}


def _t5_v1_1(depth: int, width: int, heads: int, mlp: int) -> ModelConfig:
    """Shazeer 2020 (arXiv:2002.05202) and the published configs: gated, read-out of its own, pre-trained undropped."""
    return _t5(depth, width, heads, 64, Mlp(mlp, "gelu_tanh"), Readout(tied=False), dropout=0.0)


_T5_V1_1 = {  # the published configs: depth of each stack, width, heads, mlp
    "small": (8, 512, 6, 1024),
    "base": (12, 768, 12, 2048),
    "large": (24, 1024, 16, 2816),
    "xl": (24, 2048, 32, 5120),
    "xxl": (24, 4096, 64, 10_240),
}

FAMILIES = {
    "transformer": (_original, _ORIGINAL),
    "marian": (_marian, _MARIAN),
    "t5": (_t5_v1_0, _T5),
    "t5-v1.1": (_t5_v1_1, _T5_V1_1),
}
