"""Decoders."""

from __future__ import annotations

from transformer.models.config import Attention, Init, ModelConfig, Norm, Position, Readout, Scaling, Stack
from transformer.models.feed_forward import Experts, Mlp

_LAYER_NORM = Norm("layer", epsilon=1e-5, bias=True)


def _gpt(
    depth: int, width: int, heads: int, head_width: int | None = None, *, length: int, dropout: float = 0.0
) -> ModelConfig:
    """Radford et al. 2019, section 2.3, and Brown et al. 2020, section 2.1: pre-norm, learned positions, biases."""
    stack = Stack(
        depth,
        Attention(heads, head_width=head_width, bias=True, output_bias=True, dropout=dropout),
        Mlp(4 * width, "gelu_tanh", gated=False, bias=True),
        _LAYER_NORM,
        position=Position("learned"),
        dropout=dropout,
    )
    return ModelConfig(50_257, width, decoder=stack, length=length)


def _gpt2(depth: int, width: int, heads: int) -> ModelConfig:
    return _gpt(depth, width, heads, length=1024, dropout=0.1)


_GPT2 = {  # Radford et al. 2019, table 2, and the published configs: depth, width, heads
    "small": (12, 768, 12),
    "medium": (24, 1024, 16),
    "large": (36, 1280, 20),
    "xl": (48, 1600, 25),
}


def _gpt3(depth: int, width: int, heads: int, head_width: int) -> ModelConfig:
    """Every layer is dense here: the paper alternates with banded ones, but does not print how wide the bands are."""
    return _gpt(depth, width, heads, head_width, length=2048)


_GPT3 = {  # Brown et al. 2020 (arXiv:2005.14165), table 2.1, as printed: depth, width, heads, head width
    "125m": (12, 768, 12, 64),
    "350m": (24, 1024, 16, 64),
    "760m": (24, 1536, 16, 96),
    "1.3b": (24, 2048, 24, 128),
    "2.7b": (32, 2560, 32, 80),
    "6.7b": (32, 4096, 32, 128),
    "13b": (40, 5140, 40, 128),
    "175b": (96, 12_288, 96, 128),
}


def _pythia(depth: int, width: int, heads: int, vocab: int = 50_304) -> ModelConfig:
    """Black et al. 2022 (arXiv:2204.06745), section 2.1: parallel halves, and a quarter of each head turns.

    Matrices start with deviation sqrt(2 / (5 width)), those that write to the residual with 2 / (depth sqrt(width)).
    """
    stack = Stack(
        depth,
        Attention(heads, bias=True, output_bias=True),
        Mlp(4 * width, "gelu", gated=False, bias=True),
        _LAYER_NORM,
        position=Position(fraction=0.25),
        parallel=True,
    )
    small = (2 / (5 * width)) ** 0.5
    init = Init(scale=small, embedding=small, output=10**0.5 / depth)
    return ModelConfig(vocab, width, decoder=stack, length=2048, readout=Readout(tied=False), init=init)


_PYTHIA = {  # Biderman et al. 2023 (arXiv:2304.01373), table 1: depth, width, heads; vocab, where it is padded further
    "70m": (6, 512, 8),
    "160m": (12, 768, 12),
    "410m": (24, 1024, 16),
    "1b": (16, 2048, 8),
    "1.4b": (24, 2048, 16),
    "2.8b": (32, 2560, 32),
    "6.9b": (32, 4096, 32, 50_432),
    "12b": (36, 5120, 40, 50_688),
}


def _llama(
    depth: int,
    width: int,
    attention: Attention,
    mlp: int | Mlp,
    *,
    epsilon: float,
    base: float,
    scaling: Scaling = Scaling(),  # noqa: B008
    tied: bool = False,
    **rest: int,
) -> ModelConfig:
    """Touvron et al. 2023 (arXiv:2302.13971), section 2.2: RMSNorm before each half, SiLU gates, rotary positions."""
    position = Position(base=base, scaling=scaling)
    mlp = Mlp(mlp) if isinstance(mlp, int) else mlp
    stack = Stack(depth, attention, mlp, Norm(epsilon=epsilon), position=position)
    return ModelConfig(width=width, decoder=stack, readout=Readout(tied), **rest)


def _llama2(depth: int, width: int, heads: int, kv_heads: int, mlp: int) -> ModelConfig:
    attention = Attention(heads, kv_heads)
    return _llama(depth, width, attention, mlp, epsilon=1e-5, base=10_000.0, vocab=32_000, length=4096)


_LLAMA2 = {  # Touvron et al. 2023 (arXiv:2307.09288), table 1, and the published configs: depth, width, heads, kv, mlp
    "7b": (32, 4096, 32, 32, 11_008),
    "13b": (40, 5120, 40, 40, 13_824),
    "70b": (80, 8192, 64, 8, 28_672),
}


def _llama3(depth: int, width: int, heads: int, kv_heads: int, mlp: int) -> ModelConfig:
    attention = Attention(heads, kv_heads)
    return _llama(depth, width, attention, mlp, epsilon=1e-5, base=500_000.0, vocab=128_256, length=8192)


_LLAMA3 = {  # Dubey et al. 2024 (arXiv:2407.21783), table 3; the models as first released: depth, width, heads, kv, mlp
    "8b": (32, 4096, 32, 8, 14_336),
    "70b": (80, 8192, 64, 8, 28_672),
}


def _llama3_2(depth: int, width: int, heads: int, kv_heads: int, mlp: int) -> ModelConfig:
    """Llama 3 made small and tied, its rotary frequencies stretched as in the code that was released with it."""
    scaling = Scaling("llama3", 32.0, original_length=8192, low=1.0, high=4.0)
    return _llama(
        depth,
        width,
        Attention(heads, kv_heads),
        mlp,
        epsilon=1e-5,
        base=500_000.0,
        scaling=scaling,
        tied=True,
        vocab=128_256,
        length=131_072,
    )


_LLAMA3_2 = {  # the published configs: depth, width, heads, kv, mlp
    "1b": (16, 2048, 32, 8, 8192),
    "3b": (28, 3072, 24, 8, 8192),
}


def _mistral(depth: int, width: int, heads: int, kv_heads: int, mlp: int, window: int) -> ModelConfig:
    attention = Attention(heads, kv_heads, windows=(window,))
    return _llama(depth, width, attention, mlp, epsilon=1e-5, base=10_000.0, vocab=32_000, length=32_768)


_MISTRAL = {  # Jiang et al. 2023 (arXiv:2310.06825), table 1, and the config of version 0.1: ..., window
    "7b": (32, 4096, 32, 8, 14_336, 4096),
}


def _mixtral(
    depth: int, width: int, heads: int, kv_heads: int, mlp: int, experts: int, active: int, vocab: int, length: int
) -> ModelConfig:
    """Jiang et al. 2024 (arXiv:2401.04088), section 2: Mistral without a window, of experts that drop nothing."""
    feed_forward = Mlp(mlp, experts=Experts(experts, active))
    return _llama(
        depth, width, Attention(heads, kv_heads), feed_forward, epsilon=1e-5, base=1e6, vocab=vocab, length=length
    )


_MIXTRAL = {  # table 1 and the published configs: depth, width, heads, kv, mlp, experts, active, vocab, length
    "8x7b": (32, 4096, 32, 8, 14_336, 8, 2, 32_000, 32_768),
    "8x22b": (56, 6144, 48, 8, 16_384, 8, 2, 32_000, 65_536),
}


def _qwen2(depth: int, width: int, heads: int, kv_heads: int, mlp: int) -> ModelConfig:
    attention = Attention(heads, kv_heads, bias=True)
    return _llama(depth, width, attention, mlp, epsilon=1e-6, base=1e6, tied=True, vocab=151_936, length=131_072)


_QWEN2 = {  # Yang et al. 2024 (arXiv:2407.10671), table 1, and the published configs: depth, width, heads, kv, mlp
    "0.5b": (24, 896, 14, 2, 4864),
    "1.5b": (28, 1536, 12, 2, 8960),
}


def _qwen3(depth: int, width: int, heads: int, kv_heads: int, mlp: int) -> ModelConfig:
    attention = Attention(heads, kv_heads, head_width=128, query_key_norm=True)
    return _llama(depth, width, attention, mlp, epsilon=1e-6, base=1e6, tied=True, vocab=151_936, length=40_960)


_QWEN3 = {  # Yang et al. 2025 (arXiv:2505.09388), table 1, and the published configs: depth, width, heads, kv, mlp
    "0.6b": (28, 1024, 16, 8, 3072),
    "1.7b": (28, 2048, 16, 8, 6144),
}


def _gemma_of(depth: int, width: int, attention: Attention, mlp: int, placement: str, readout: Readout) -> ModelConfig:
    """What both Gemmas share: embeddings scaled and tied, norms about zero, gates of GELU."""
    norm = Norm(epsilon=1e-6, zero_centred=True)
    stack = Stack(depth, attention, Mlp(mlp, "gelu_tanh"), norm, placement)
    return ModelConfig(256_000, width, decoder=stack, length=8192, embedding_scale=True, readout=readout)


def _gemma(depth: int, width: int, heads: int, kv_heads: int, head_width: int, mlp: int) -> ModelConfig:
    """Gemma Team 2024 (arXiv:2403.08295), section 2."""
    return _gemma_of(depth, width, Attention(heads, kv_heads, head_width), mlp, "pre", Readout())


_GEMMA = {  # table 1, with the inner width of one branch as in the published config: depth, width, heads, kv, head, mlp
    "2b": (18, 2048, 8, 1, 256, 16_384),
}


def _gemma2(
    depth: int, width: int, heads: int, kv_heads: int, head_width: int, mlp: int, scaled_as: int
) -> ModelConfig:
    """Gemma Team 2024 (arXiv:2408.00118), section 2: windows in every other layer, soft caps, norms on both sides."""
    attention = Attention(heads, kv_heads, head_width, scale=scaled_as**-0.5, softcap=50.0, windows=(4096, 0))
    return _gemma_of(depth, width, attention, mlp, "both", Readout(softcap=30.0))


_GEMMA2 = {  # table 1 and the published configs, mlp as for Gemma: ..., the width by which scores are scaled
    "2b": (26, 2304, 8, 4, 256, 9216, 256),
    "9b": (42, 3584, 16, 8, 256, 14_336, 256),
    "27b": (46, 4608, 32, 16, 128, 36_864, 144),
}

FAMILIES = {
    "gpt2": (_gpt2, _GPT2),
    "gpt3": (_gpt3, _GPT3),
    "pythia": (_pythia, _PYTHIA),
    "llama2": (_llama2, _LLAMA2),
    "llama3": (_llama3, _LLAMA3),
    "llama3.2": (_llama3_2, _LLAMA3_2),
    "mistral": (_mistral, _MISTRAL),
    "mixtral": (_mixtral, _MIXTRAL),
    "qwen2": (_qwen2, _QWEN2),
    "qwen3": (_qwen3, _QWEN3),
    "gemma": (_gemma, _GEMMA),
    "gemma2": (_gemma2, _GEMMA2),
}
