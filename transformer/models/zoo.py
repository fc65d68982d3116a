"""Published models by name. One function for what a family shares, one table for what its sizes do not."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from transformer.models.config import Attention, Init, Mlp, ModelConfig, Norm, Position, Readout, Stack

_LAYER_NORM = Norm("layer", epsilon=1e-5, bias=True)


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


def _bert(depth: int, width: int, heads: int) -> ModelConfig:
    """Devlin et al. 2019 (arXiv:1810.04805), section 3 and appendix A.2; the uncased vocabulary, with the pooler."""
    stack = Stack(
        depth,
        Attention(heads, bias=True, output_bias=True, dropout=0.1),
        Mlp(4 * width, "gelu", gated=False, bias=True),
        Norm("layer", epsilon=1e-12, bias=True),
        norm_placement="post",
        position=Position("learned"),
        embedding_norm=True,
        dropout=0.1,
    )
    init = Init(output=1.0)
    return ModelConfig(30_522, width, encoder=stack, length=512, token_types=2, pooler=True, init=init)


_BERT = {  # section 3: depth, width, heads
    "base": (12, 768, 12),
    "large": (24, 1024, 16),
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


def _llama(
    depth: int,
    width: int,
    attention: Attention,
    mlp: int,
    *,
    epsilon: float,
    base: float,
    tied: bool = False,
    **rest: int,
) -> ModelConfig:
    """Touvron et al. 2023 (arXiv:2302.13971), section 2.2: RMSNorm before each half, SiLU gates, rotary positions."""
    stack = Stack(depth, attention, Mlp(mlp), Norm(epsilon=epsilon), position=Position(base=base))
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


def _mistral(depth: int, width: int, heads: int, kv_heads: int, mlp: int, window: int) -> ModelConfig:
    attention = Attention(heads, kv_heads, windows=(window,))
    return _llama(depth, width, attention, mlp, epsilon=1e-5, base=10_000.0, vocab=32_000, length=32_768)


_MISTRAL = {  # Jiang et al. 2023 (arXiv:2310.06825), table 1, and the config of version 0.1: ..., window
    "7b": (32, 4096, 32, 8, 14_336, 4096),
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


def _gemma(depth: int, width: int, heads: int, kv_heads: int, head_width: int, mlp: int) -> ModelConfig:
    """Gemma Team 2024 (arXiv:2403.08295), section 2."""
    stack = Stack(
        depth,
        Attention(heads, kv_heads, head_width),
        Mlp(mlp, "gelu_tanh"),
        Norm(epsilon=1e-6, zero_centred=True),
    )
    return ModelConfig(256_000, width, decoder=stack, length=8192, embedding_scale=True)


_GEMMA = {  # table 1, with the inner width of one branch as in the published config: depth, width, heads, kv, head, mlp
    "2b": (18, 2048, 8, 1, 256, 16_384),
}


def _tiny(encoder: bool, decoder: bool) -> ModelConfig:
    """Ours, for tests and first steps: the defaults of `config`, at a size that trains anywhere."""
    stack = Stack(depth=2)
    return ModelConfig(320, 64, encoder=stack if encoder else None, decoder=stack if decoder else None, length=128)


_TINY = {  # has an encoder, has a decoder
    "decoder": (False, True),
    "encoder": (True, False),
    "both": (True, True),
}

_FAMILIES: dict[str, tuple[Callable[..., ModelConfig], dict[str, tuple]]] = {
    "transformer": (_original, _ORIGINAL),
    "gpt2": (_gpt2, _GPT2),
    "gpt3": (_gpt3, _GPT3),
    "bert": (_bert, _BERT),
    "t5": (_t5_v1_0, _T5),
    "t5-v1.1": (_t5_v1_1, _T5_V1_1),
    "llama2": (_llama2, _LLAMA2),
    "llama3": (_llama3, _LLAMA3),
    "mistral": (_mistral, _MISTRAL),
    "qwen2": (_qwen2, _QWEN2),
    "qwen3": (_qwen3, _QWEN3),
    "gemma": (_gemma, _GEMMA),
    "tiny": (_tiny, _TINY),
}


def names() -> tuple[str, ...]:
    """Every name that `get` knows, family by family."""
    return tuple(f"{family}-{size}" for family, (_, table) in _FAMILIES.items() for size in table)


def get(name: str) -> ModelConfig:
    """The config of a published model, such as `gpt2-small`.

    Raises:
      ValueError: if there is no such name; it lists the nearest ones.
    """
    family, _, size = name.rpartition("-")
    build, table = _FAMILIES.get(family, (None, {}))
    if build is None or size not in table:
        near = difflib.get_close_matches(name, names(), n=4, cutoff=0.4)
        hint = f"the nearest are {', '.join(near)}" if near else f"there are {', '.join(names())}"
        raise ValueError(f"no model is called {name!r}; {hint}")
    return build(*table[size])
