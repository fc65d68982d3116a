"""A compact GPT in PyTorch, the same function as this repository's decoder of the same config; needs torch.

Pre-norm blocks, learned positions, a tied read-out, attention by `F.scaled_dot_product_attention` with query, key and
value in one product: what a careful user of PyTorch would write.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from transformer.models.config import ModelConfig

ACTIVATIONS = {"gelu": F.gelu, "gelu_tanh": partial(F.gelu, approximate="tanh"), "relu": F.relu, "silu": F.silu}


class Block(nn.Module):
    """Attention and feed-forward, each added to what it reads."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        stack, width, inner = config.decoder, config.width, config.mlp_width(config.decoder)
        self.heads, self.activation = stack.attention.heads, ACTIVATIONS[stack.mlp.activation]
        self.attention_norm, self.mlp_norm = _norm(config), _norm(config)
        self.read = nn.Linear(width, 3 * width, stack.attention.bias)
        self.write = nn.Linear(width, width, stack.attention.output_bias)
        self.up = nn.Linear(width, inner, stack.mlp.bias)
        self.down = nn.Linear(inner, width, stack.mlp.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, T, D] -> [B, T, D]`."""
        batch, length, width = x.shape
        heads = self.read(self.attention_norm(x)).view(batch, length, 3, self.heads, -1)
        query, key, value = heads.permute(2, 0, 3, 1, 4).unbind()  # [B, H, T, K]
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.write(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(self.activation(self.up(self.mlp_norm(x))))


class GPT(nn.Module):
    """Token ids `[B, T]` to logits `[B, T, V]`, or, with targets, to their mean cross-entropy."""

    def __init__(self, config: ModelConfig):
        """Raises ValueError where a config asks for what this network does not have."""
        super().__init__()
        _check(config)
        self.tokens, self.positions = (
            nn.Embedding(config.vocab, config.width),
            nn.Embedding(config.length, config.width),
        )
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.decoder.depth))
        self.norm = _norm(config)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=config.init.scale)

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
        """`[B, T]` integers, twice, to a scalar; once, to `[B, T, V]`."""
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.norm(x), self.tokens.weight)
        return logits if targets is None else F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def copy_weights(network: GPT, params: Mapping) -> None:
    """Gives the network the parameters of a decoder of this repository, as NumPy or JAX arrays."""

    def put(parameter: torch.Tensor, array: np.ndarray) -> None:
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(np.array(array, np.float32)).reshape(parameter.shape))

    def put_norm(norm: nn.LayerNorm, arrays: Mapping, layer: int | None = None) -> None:
        for theirs, ours in (("weight", "scale"), ("bias", "bias")):
            if ours in arrays:
                put(getattr(norm, theirs), arrays[ours] if layer is None else arrays[ours][layer])

    def put_linear(linear: nn.Linear, parts: list[Mapping], layer: int) -> None:
        kernels = [np.asarray(part["kernel"][layer]) for part in parts]
        put(linear.weight, np.concatenate([k.reshape(linear.in_features, -1) for k in kernels], axis=1).T)
        if linear.bias is not None:
            put(linear.bias, np.concatenate([np.ravel(part["bias"][layer]) for part in parts]))

    blocks = params["decoder"]["blocks"]
    put(network.tokens.weight, params["embedding"]["table"])
    put(network.positions.weight, params["decoder"]["positions"]["table"])
    put_norm(network.norm, params["decoder"]["final_norm"])
    for layer, block in enumerate(network.blocks):
        attention, mlp = blocks["attention"], blocks["mlp"]
        put_norm(block.attention_norm, blocks["attention_norm"], layer)
        put_norm(block.mlp_norm, blocks["mlp_norm"], layer)
        put_linear(block.read, [attention[name] for name in ("query", "key", "value")], layer)
        put_linear(block.write, [attention["output"]], layer)
        put_linear(block.up, [mlp["up"]], layer)
        put_linear(block.down, [mlp["down"]], layer)


def trainer(
    network: Callable, parameters: list[nn.Parameter], *, device: str, bfloat16: bool, rate: float, decay: float,
    betas: tuple[float, float], epsilon: float, clip: float,
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:  # fmt: skip
    """A training step `(tokens, targets) -> loss`: fused AdamW, which spares biases and norms the decay, and clipping.

    Args:
      network: `(tokens, targets) -> loss`, compiled or not; with `bfloat16` under autocast, its parameters float32.
    """
    matrices, vectors = ([p for p in parameters if (p.dim() > 1) == wanted] for wanted in (True, False))
    groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=betas, eps=epsilon, fused=True)

    def step(tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
            loss = network(tokens, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def _norm(config: ModelConfig) -> nn.LayerNorm:
    norm = config.decoder.norm
    return nn.LayerNorm(config.width, eps=norm.epsilon, bias=norm.bias)


def _check(config: ModelConfig) -> None:
    stack, mlp = config.decoder, config.decoder and config.decoder.mlp
    kinds = stack and mlp and (stack.norm.kind, stack.norm_placement, stack.position.kind, mlp.gated)
    plain = config.readout.tied and not config.readout.bias and config.kv_heads(stack) == stack.attention.heads
    if kinds != ("layer", "pre", "learned", False) or not plain or stack.dropout or stack.attention.dropout:
        raise ValueError(
            "config: this network is a GPT-2 without dropout; give it a decoder like models.get('gpt2-small')"
        )
