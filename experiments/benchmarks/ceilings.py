"""What the machine can do at most: square matrix products and reading memory, in JAX and in PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from experiments.benchmarks.contest import Case, Program, Result, Settings

PRODUCT, READ = "ceiling: product", "ceiling: read"


def cases(settings: Settings) -> list[Case]:
    """Products in each precision, and a float32 array read."""
    side, size = settings.choose(2048, 8192, 64), settings.choose(2**26, 2**28, 2**12)

    def programs(maker: str, **arguments) -> list[Program]:
        arguments["device"] = settings.device
        return [
            Program("jax", f"ceilings:jax_{maker}", arguments),
            Program("torch", f"ceilings:torch_{maker}", arguments, ("torch",)),
        ]

    flops = 2.0 * side**3
    found = [
        Case(PRODUCT, precision, programs("product", side=side, precision=precision), flops, "FLOP", flops=flops)
        for precision in settings.precisions
    ]
    read = 4.0 * size
    return [*found, Case(READ, "float32", programs("read", size=size), read, "B", traffic=read)]


def best(measured: Sequence[tuple[Case, Sequence[Result]]]) -> dict[str, float]:
    """FLOP/s by precision and, as "memory", bytes read a second: the best timing of either library."""
    found: dict[str, float] = {}
    for case, results in measured:
        seconds = [second for result in results for second in result.seconds]
        if case.name in (PRODUCT, READ) and seconds:
            found["memory" if case.name == READ else case.precision] = case.amount / min(seconds)
    return found


def share(case: Case, seconds: float, ceilings: Mapping[str, float]) -> tuple[float, str] | None:
    """The share of the ceiling that a call of so many seconds reaches, and which one; None where none is known."""
    if case.flops and case.precision in ceilings:
        return case.flops / seconds / ceilings[case.precision], "products"
    if case.traffic and "memory" in ceilings:
        return case.traffic / seconds / ceilings["memory"], "memory"
    return None


def jax_product(device: str, side: int, precision: str) -> Callable[[], object]:
    """A square matrix times another, both random, accumulated in float32."""
    import jax
    import jax.numpy as jnp

    x, y = jax.random.normal(jax.random.key(0), (2, side, side), precision)
    product = jax.jit(lambda x, y: jnp.dot(x, y, preferred_element_type=jnp.float32))
    return lambda: product(x, y).block_until_ready()


def torch_product(device: str, side: int, precision: str) -> Callable[[], object]:
    """The same; bfloat16 products are accumulated in float32 and rounded to bfloat16."""
    from experiments.benchmarks import peers

    torch, place, wait = peers.torch(device)
    x, y = torch.randn((2, side, side), dtype=getattr(torch, precision), device=place)
    return lambda: wait(x @ y)


def jax_read(device: str, size: int) -> Callable[[], object]:
    """A matrix times a vector, both random."""
    import jax
    import jax.numpy as jnp

    x, y = (jax.random.normal(jax.random.key(0), shape) for shape in ((4096, size // 4096), (size // 4096,)))
    product = jax.jit(jnp.dot)
    return lambda: product(x, y).block_until_ready()


def torch_read(device: str, size: int) -> Callable[[], object]:
    """The same."""
    from experiments.benchmarks import peers

    torch, place, wait = peers.torch(device)
    x, y = torch.randn((4096, size // 4096), device=place), torch.randn(size // 4096, device=place)
    return lambda: wait(x @ y)
