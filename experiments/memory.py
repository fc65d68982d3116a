"""What a program does with memory that it has freed.

XLA for CPUs asks the C library for the room of a program's intermediate results at every call, and frees it after it.
By default glibc returns so much to the system, which then has to clear it for every call, page by page: 0.7 s of two
cores' time in each step of 2.8 s of the character model of `experiments.benchmarks`, 1.15 times what it takes so; GPT-2
takes 6.1 instead of 5.4 s. The price is room: a heap that gives nothing back has gaps, and GPT-2's training holds up
to 8.2 GB where it held 4.4. `MALLOC_ARENA_MAX=8`, or any such variable, leaves glibc as it is.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import sys

# glibc's malloc.h: what is freed at the end of the heap stays, however much; blocks, however large, come from the heap;
# and threads share one, since the other heaps have no room for large blocks.
OPTIONS = {"M_TRIM_THRESHOLD": (-1, -1), "M_MMAP_MAX": (-4, 0), "M_ARENA_MAX": (-8, 1)}


def keep() -> bool:
    """Keeps what this process frees for what it asks for next, where there is glibc and nothing but CPUs.

    Does it before threads begin, which stay with the heap they have. Variables of glibc that the user has set
    (`MALLOC_*`, `GLIBC_TUNABLES`) stand. With an accelerator nothing is changed, for its arrays are elsewhere and one
    heap may be short for the threads that read data.

    Returns:
      Whether it was done.
    """
    if not sys.platform.startswith("linux") or any(n.startswith(("MALLOC_", "GLIBC_TUNABLES")) for n in os.environ):
        return False
    plugins = importlib.metadata.entry_points(group="jax_plugins") or importlib.util.find_spec("libtpu")
    if plugins and os.environ.get("JAX_PLATFORMS") != "cpu":
        return False
    library = ctypes.CDLL(None)
    return hasattr(library, "gnu_get_libc_version") and all(library.mallopt(*each) for each in OPTIONS.values())
