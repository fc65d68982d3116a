"""Training steps: of a character model, of GPT-2, and the time that the first step of a deep model takes."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.benchmarks import peers, sizes
from experiments.benchmarks.contest import HUGGING_FACE, TORCH, Case, Program, Settings
from transformer import models

DEPTHS = (12, 48, 96)
DEEP = 48  # layers that `torch.compile` is timed with only once
RATE, DECAY, BETAS, EPSILON, CLIP = 1e-3, 0.1, (0.9, 0.99), 1e-8, 1.0  # what every program trains with
OURS = ("transformer.training",)


def char(settings: Settings) -> list[Case]:
    """A step of a character model of 10.7 million parameters, on 12 rows of 256 characters."""
    return [_steps("train-char", "char", settings.choose(12, 64, 2), settings, p) for p in settings.precisions]


def gpt2(settings: Settings) -> list[Case]:
    """A step of GPT-2, 124 million parameters, on rows of 1,024 tokens."""
    return [_steps("train-gpt2", "gpt2", settings.choose(1, 16, 1), settings, p) for p in settings.precisions]


def first_step(settings: Settings) -> list[Case]:
    """The first training step, traced and compiled, nothing cached: one is not counted, then three are.

    Model, optimizer and batch are there before. `torch.compile` takes minutes for deep models: from 48 layers on, one.
    """
    found = []
    for depth in settings.choose(DEPTHS, DEPTHS, (2,)):
        model = {"name": "deep", "depth": depth, "tiny": settings.tiny}
        arguments = {"model": model, "device": settings.device}
        programs = [Program("ours", "training:our_first_step", arguments, OURS)]
        if not settings.tiny:
            few = 1 if depth >= DEEP else None
            programs.append(Program("torch compiled", "training:torch_first_step", arguments, TORCH, repeats=few))
        case = {"amount": 1, "unit": "steps", "repeats": 3, "warmups": 1}
        found.append(Case(f"compile, {depth} layers", "float32", programs, **case))
    return found


def _steps(case: str, name: str, rows: int, settings: Settings, precision: str) -> Case:
    config = sizes.config(name, tiny=settings.tiny)
    arguments = {
        "model": {"name": name, "tiny": settings.tiny}, "rows": rows, "precision": precision,
        "device": settings.device,
    }  # fmt: skip
    programs = [
        Program("ours", "training:ours", arguments, OURS),
        Program("ours, unrolled", "training:ours", {**arguments, "unroll": config.decoder.depth}, OURS),
        Program("torch", "training:torch_gpt", arguments, TORCH),
    ]
    if not settings.tiny:  # compiling takes longer than a test may
        programs.append(Program("torch compiled", "training:torch_gpt", {**arguments, "compiled": True}, TORCH))
        programs.append(Program("transformers", "training:hugging_face", arguments, HUGGING_FACE))
    tokens = rows * config.length
    flops = tokens * models.ledger(config).flops_per_token(config.length, causal=True).training
    return Case(case, precision, programs, tokens, "tokens", flops=flops)


def ours(model: dict, rows: int, precision: str, device: str, unroll: int = 1) -> Callable[[], Any]:
    """The step that `training.train` compiles for one device, its state donated."""
    import jax

    config = sizes.config(**model, dtype=precision, unroll=unroll)
    step, state = our_step(config)
    compiled = jax.jit(step, donate_argnums=0)
    batch = jax.device_put(random_batch(config, rows))

    def program() -> None:
        nonlocal state
        state, metrics = compiled(state, batch)
        jax.block_until_ready((state, metrics))

    return program


def torch_gpt(model: dict, rows: int, precision: str, device: str, compiled: bool = False) -> Callable[[], Any]:
    """The same step in PyTorch; bfloat16 by autocast, with float32 parameters as ours."""
    torch, place, wait = peers.torch(device)
    from experiments.benchmarks.torch_gpt import GPT

    config = sizes.config(**model)
    network = GPT(config).to(place)
    return torch_program(
        network, torch.compile(network) if compiled else network, config, rows, precision, device, wait
    )


def hugging_face(model: dict, rows: int, precision: str, device: str) -> Callable[[], Any]:
    """The same step with the GPT-2 of `transformers`."""
    torch, place, wait = peers.torch(device)
    from experiments.benchmarks.hugging_face import gpt2 as build

    config = sizes.config(**model)
    network = build(config).to(place).train()

    def loss(tokens: Any, targets: Any) -> Any:
        logits = network(input_ids=tokens, use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    return torch_program(network, loss, config, rows, precision, device, wait)


def our_first_step(model: dict, device: str) -> Callable[[], float]:
    """Forgets every compiled program, then traces, compiles and takes one step."""
    import jax

    config = sizes.config(**model)
    jax.config.update("jax_enable_compilation_cache", False)
    batch = jax.device_put(random_batch(config, 1))

    def program() -> float:
        step, state = our_step(config)
        jax.block_until_ready(state)
        jax.clear_caches()
        start = time.perf_counter()
        jax.block_until_ready(jax.jit(step, donate_argnums=0)(state, batch))
        return time.perf_counter() - start

    return program


def torch_first_step(model: dict, device: str) -> Callable[[], float]:
    """The same with `torch.compile`, whose caches are off."""
    torch, place, wait = peers.torch(device)
    from torch._inductor import config as compiler

    from experiments.benchmarks.torch_gpt import GPT

    compiler.force_disable_caches = True
    config = sizes.config(**model)

    def program() -> float:
        torch._dynamo.reset()
        network = GPT(config).to(place)
        step = torch_program(network, torch.compile(network), config, 1, "float32", device, wait)
        start = time.perf_counter()
        step()
        return time.perf_counter() - start

    return program


def our_step(config: models.ModelConfig) -> tuple[Callable, Any]:
    """The step, and the state before the first."""
    import jax
    import jax.numpy as jnp

    from transformer import training

    model = models.Transformer(config)
    options = {"beta1": BETAS[0], "beta2": BETAS[1], "epsilon": EPSILON, "clip": CLIP}
    optimizer = training.optimizers.build(
        training.Optimizer(learning_rate=RATE, schedule="constant", weight_decay=DECAY, **options), steps=1000
    )
    step = functools.partial(training.train_step, loss_fn=training.prediction(model), optimizer=optimizer)

    @jax.jit
    def start(key: jax.Array) -> training.State:
        return training.create(model.init(key, jnp.zeros((1, 1), jnp.int32))["params"], optimizer)

    return step, start(jax.random.key(0))


def torch_program(network: Any, loss: Callable, config, rows: int, precision: str, device: str, wait: Callable):
    import torch

    from experiments.benchmarks.torch_gpt import trainer

    parameters = list(network.parameters())
    place = parameters[0].device
    options = {"rate": RATE, "decay": DECAY, "betas": BETAS, "epsilon": EPSILON, "clip": CLIP}
    step = trainer(loss, parameters, device=place.type, bfloat16=precision == "bfloat16", **options)
    batch = random_batch(config, rows)
    tokens, targets = (torch.from_numpy(batch[name]).long().to(place) for name in ("inputs", "targets"))
    return lambda: wait(step(tokens, targets))


def random_batch(config: models.ModelConfig, rows: int) -> dict[str, np.ndarray]:
    """Random tokens, each to be predicted from those before it."""
    ids = np.random.default_rng(0).integers(0, config.vocab, (rows, config.length + 1), np.int32)
    return {"inputs": ids[:, :-1], "targets": ids[:, 1:], "weights": np.ones((rows, config.length), np.float32)}
