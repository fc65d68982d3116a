"""What looking inside costs: a forward pass of GPT-2 small, with every pattern kept, and with heads replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from experiments.benchmarks import peers, sizes
from experiments.benchmarks.contest import HUGGING_FACE, Case, Program, Settings
from transformer import models

LENGTH, HEAD = 512, 5
ACTIONS = ("forward", "capture", "patch")


def cases(settings: Settings) -> list[Case]:
    """A forward pass plain, with every pattern kept, and with one head's output of every layer set to zero."""
    length = settings.choose(LENGTH, LENGTH, 8)
    config = sizes.config("gpt2", tiny=settings.tiny)
    flops = length * models.ledger(config).flops_per_token(length, causal=True).forward
    found = []
    for action in ACTIONS:
        arguments = {"action": action, "tiny": settings.tiny, "length": length, "device": settings.device}
        programs = [
            Program("ours", "capture:ours", arguments, ("transformer.inspection",)),
            Program("transformers", "capture:hugging_face", arguments, HUGGING_FACE),
        ]
        found.append(Case(f"inspection {action}", "float32", programs, length, "tokens", flops=flops))
    return found


def ours(action: str, tiny: bool, length: int, device: str) -> Callable[[], Any]:
    """`inspection.run`; plain: the model's own compiled forward pass."""
    import jax
    import jax.numpy as jnp

    from transformer import inspection

    model = models.Transformer(sizes.config("gpt2", tiny=tiny))
    tokens = jnp.asarray(_ids(model.config.vocab, length))
    params = jax.jit(model.init)(jax.random.key(0), tokens)["params"]
    plain = jax.jit(lambda params, tokens: model.apply({"params": params}, tokens))
    heads = model.config.decoder.attention.heads
    patch = inspection.Patch("decoder/*/mixed", jnp.float32(0.0), head=HEAD % heads)

    def capture() -> Any:
        logits, taps = inspection.run(model, params, tokens, capture="decoder/*/pattern")
        _check_patterns(taps.values(), model.config, length)
        return logits, taps

    programs = {
        "forward": lambda: plain(params, tokens),
        "capture": capture,
        "patch": lambda: inspection.run(model, params, tokens, patches=(patch,)),
    }
    return lambda: jax.block_until_ready(programs[action]())


def hugging_face(action: str, tiny: bool, length: int, device: str) -> Callable[[], Any]:
    """Hooks of PyTorch on the network of `transformers`; patterns need its eager attention."""
    torch, place, wait = peers.torch(device)
    from experiments.benchmarks.hugging_face import gpt2

    config = sizes.config("gpt2", tiny=tiny)
    network = gpt2(config, attention="eager" if action == "capture" else "sdpa").to(place)
    ids, kept = torch.from_numpy(_ids(network.config.vocab_size, length)).long().to(place), []
    heads = network.config.n_head
    width = network.config.n_embd // heads
    first = HEAD % heads * width

    def keep(module: Any, inputs: Any, outputs: Any) -> None:
        kept.append(outputs[1])

    def silence(module: Any, inputs: Any) -> tuple:
        mixed = inputs[0].clone()
        mixed[..., first : first + width] = 0.0
        return (mixed, *inputs[1:])

    for block in network.transformer.h:
        if action == "capture":
            block.attn.register_forward_hook(keep)
        if action == "patch":
            block.attn.c_proj.register_forward_pre_hook(silence)

    def program() -> None:
        kept.clear()
        with torch.inference_mode():
            wait(network(ids, use_cache=False).logits)
        if action == "capture":
            _check_patterns(kept, config, length)

    return program


def _check_patterns(kept: Iterable[Any], config: models.ModelConfig, length: int) -> None:
    """Raises RuntimeError unless every layer's pattern `[1, H, T, T]` was kept."""
    shapes, heads = [tuple(getattr(pattern, "shape", ())) for pattern in kept], config.decoder.attention.heads
    if shapes != [(1, heads, length, length)] * config.decoder.depth:
        raise RuntimeError(f"not every layer's pattern was kept, but arrays of the shapes {shapes}")


def _ids(vocab: int, length: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, vocab, (1, length), np.int32)
