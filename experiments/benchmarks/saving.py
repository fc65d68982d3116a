"""Checkpoints of GPT-2 small with AdamW's state, and its parameters in a Hugging Face folder: written and read back."""

from __future__ import annotations

import itertools
import pathlib
import shutil
import tempfile
import time
from collections.abc import Callable
from typing import Any

from experiments.benchmarks import peers, sizes
from experiments.benchmarks.contest import HUGGING_FACE, TORCH, Case, Program, Settings
from transformer import models


def checkpoint(settings: Settings) -> list[Case]:
    """How long training waits for a save, how long it takes until the save is on disk, and restoring it."""
    size = 3 * _size(settings)  # parameters and two moments
    found = []
    for action in ("blocking", "save", "restore"):
        arguments = {"action": action, "tiny": settings.tiny, "device": settings.device}
        programs = [
            Program("ours", "saving:our_checkpoint", arguments, ("transformer.training",)),
            Program("torch", "saving:torch_checkpoint", arguments, TORCH),
        ]
        found.append(Case(f"checkpoint {action}", "float32", programs, size, "B", repeats=3, warmups=1))
    return found


def pretrained(settings: Settings) -> list[Case]:
    """`interop.load` and `interop.save` of a folder of safetensors, which lies in the page cache."""
    found = []
    for action in ("load", "save"):
        arguments = {"action": action, "tiny": settings.tiny, "device": settings.device}
        programs = [
            Program("ours", "saving:our_folder", arguments, ("transformer.interop",)),
            Program("transformers", "saving:hugging_face_folder", arguments, HUGGING_FACE),
        ]
        found.append(Case(f"pretrained {action}", "float32", programs, _size(settings), "B", repeats=3, warmups=1))
    return found


def our_checkpoint(action: str, tiny: bool, device: str) -> Callable[[], float]:
    """`training.Checkpoints`: a copy on the host, written in the background, with a hash of every array."""
    import jax
    import numpy as np

    from transformer import training

    optimizer = training.optimizers.build(training.Optimizer(), 10)
    state = training.create(_params(tiny), optimizer)
    folder, steps = _scratch(), itertools.count(1)
    checkpoints = training.Checkpoints(folder, keep=1)

    def save() -> float:
        step = np.int32(next(steps))
        checkpoints.wait()
        start = time.perf_counter()
        host = jax.tree.map(lambda leaf: np.array(leaf, copy=True), state)  # what `host_state` does
        checkpoints.save(host.replace(step=step), {})
        if action == "save":
            checkpoints.wait()
        return time.perf_counter() - start

    def restore() -> float:
        start = time.perf_counter()
        checkpoints.restore(state)
        return time.perf_counter() - start

    if action == "restore":
        save()
        checkpoints.wait()
    return restore if action == "restore" else save


def torch_checkpoint(action: str, tiny: bool, device: str) -> Callable[[], float]:
    """`torch.save` and `torch.load` of parameters and AdamW's state; training waits for all of it."""
    torch, place, wait = peers.torch(device)
    from experiments.benchmarks.torch_gpt import GPT

    network = GPT(sizes.config("gpt2", tiny=tiny)).to(place)
    optimizer = torch.optim.AdamW(network.parameters())
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    path = pathlib.Path(_scratch()) / "checkpoint.pt"

    def save() -> float:
        start = time.perf_counter()
        torch.save({"network": network.state_dict(), "optimizer": optimizer.state_dict()}, path)
        return time.perf_counter() - start

    def restore() -> float:
        start = time.perf_counter()
        saved = torch.load(path, weights_only=True)
        network.load_state_dict(saved["network"])
        optimizer.load_state_dict(saved["optimizer"])
        wait(network)
        return time.perf_counter() - start

    if action == "restore":
        save()
    return restore if action == "restore" else save


def our_folder(action: str, tiny: bool, device: str) -> Callable[[], float]:
    """`interop.load` or `interop.save`."""
    import jax

    from transformer import interop

    config, params = sizes.config("gpt2", tiny=tiny), _params(tiny)
    folder = _scratch()

    def save() -> Any:
        return interop.save(folder, models.Transformer(config), params)

    return _folder_program(action, folder, save, lambda: jax.block_until_ready(interop.load(folder)[1]))


def hugging_face_folder(action: str, tiny: bool, device: str) -> Callable[[], float]:
    """`from_pretrained` or `save_pretrained`."""
    _, place, wait = peers.torch(device)
    import transformers

    from experiments.benchmarks.hugging_face import gpt2

    transformers.utils.logging.disable_progress_bar()
    network, folder = gpt2(sizes.config("gpt2", tiny=tiny)), _scratch()

    def load() -> Any:
        # A mapped file costs nothing until it is read: the sum reads it, as the first forward pass would.
        loaded = transformers.GPT2LMHeadModel.from_pretrained(folder).to(place)
        return wait(sum(float(parameter.sum()) for parameter in loaded.parameters()))

    return _folder_program(action, folder, lambda: network.save_pretrained(folder), load)


def _folder_program(action: str, folder: str, save: Callable, load: Callable) -> Callable[[], float]:
    if action == "load":
        save()

    def program() -> float:
        if action == "save":
            shutil.rmtree(folder, ignore_errors=True)
        start = time.perf_counter()
        save() if action == "save" else load()
        return time.perf_counter() - start

    return program


def _params(tiny: bool) -> dict:
    import jax
    import jax.numpy as jnp

    model = models.Transformer(sizes.config("gpt2", tiny=tiny))
    return jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]


def _scratch() -> str:
    """A new folder in the one that `contest` takes away after the case."""
    return tempfile.mkdtemp(prefix="benchmark-")


def _size(settings: Settings) -> int:
    return 4 * models.ledger(sizes.config("gpt2", tiny=settings.tiny)).total
