"""PyTorch, set up as fairly as we can; imported only in the processes of programs that need it."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from transformer.ops.products import cores


def torch(device: str) -> tuple[ModuleType, str, Callable[[Any], Any]]:
    """PyTorch with a thread for each core, where its tensors belong, and a function that waits for a result."""
    import torch as library

    library.set_num_threads(cores())
    library.manual_seed(0)
    if device == "cpu":
        return library, "cpu", lambda result: result
    library.set_float32_matmul_precision("high")

    def wait(result: Any) -> Any:
        library.cuda.synchronize()
        return result

    return library, "cuda", wait
