"""The read-out and the cross-entropy over GPT-2's vocabulary, with gradients of features and table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from experiments.benchmarks import peers
from experiments.benchmarks.contest import Case, Program, Settings

OURS = ("transformer.training",)
CHUNK = 512  # positions whose logits exist at one time


def cases(settings: Settings) -> list[Case]:
    """1,024 positions (8,192 on a GPU) of width 768 over 50,257 tokens."""
    positions = settings.choose(1024, 8192, 16)
    width, vocab = settings.choose((768, 50_257), (768, 50_257), (8, 64))
    found = []
    for precision in settings.precisions:
        sizes = {"positions": positions, "width": width, "vocab": vocab}
        arguments = {**sizes, "precision": precision, "device": settings.device}
        programs = [
            Program("ours", "loss:ours", arguments, OURS),
            Program("ours, chunked", "loss:ours", {**arguments, "chunk": min(CHUNK, positions)}, OURS),
            Program("torch", "loss:torch_loss", arguments, ("torch",)),
        ]
        if not settings.tiny:
            programs.append(Program("torch compiled", "loss:torch_loss", {**arguments, "compiled": True}, ("torch",)))
        flops = 6.0 * positions * width * vocab
        found.append(Case("loss", precision, programs, positions, "tokens", flops=flops))
    return found


def ours(positions: int, width: int, vocab: int, precision: str, device: str, chunk: int = 0) -> Callable[[], Any]:
    """As `training.prediction` does it: whole logits, or a chunk of them at a time."""
    import jax
    import jax.numpy as jnp

    from transformer.nn.projection import project
    from transformer.ops import losses

    keys = jax.random.split(jax.random.key(0), 3)
    features = jax.random.normal(keys[0], (1, positions, width), precision)
    table = 0.02 * jax.random.normal(keys[1], (vocab, width))
    targets = jax.random.randint(keys[2], (1, positions), 0, vocab)

    def loss(features: jax.Array, table: jax.Array) -> jax.Array:
        kernel = table.T.astype(precision)
        if chunk:
            return losses.chunked_cross_entropy(features, kernel, targets, chunk=chunk).sum
        return losses.cross_entropy(project(features, kernel, dtype=jnp.float32), targets).sum

    compiled = jax.jit(jax.value_and_grad(loss, (0, 1)))
    return lambda: jax.block_until_ready(compiled(features, table))


def torch_loss(
    positions: int, width: int, vocab: int, precision: str, device: str, compiled: bool = False
) -> Callable[[], Any]:
    """The same in PyTorch."""
    torch, place, wait = peers.torch(device)
    features = torch.randn(positions, width, dtype=getattr(torch, precision), device=place).requires_grad_()
    table = (0.02 * torch.randn(vocab, width, device=place)).requires_grad_()
    targets = torch.randint(0, vocab, (positions,), device=place)

    def loss() -> Any:
        logits = torch.nn.functional.linear(features, table.to(features.dtype))
        return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="sum")

    run = torch.compile(loss) if compiled else loss
    return lambda: wait(torch.autograd.grad(run(), (features, table)))
