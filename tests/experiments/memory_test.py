import subprocess
import sys

import pytest

from experiments import memory

# The pages that the system has to clear when 256 MB are taken a second time.
AGAIN = """
import resource, sys
from experiments import memory
if sys.argv[1] == "kept":
    print(memory.keep())
else:
    print(True)
import numpy as np
np.ones(2**25)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(2**25)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _run(monkeypatch, how, **environment):
    for name in ("MALLOC_ARENA_MAX", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"JAX_PLATFORMS": "cpu", **environment}.items():
        monkeypatch.setenv(name, value)
    out = subprocess.run([sys.executable, "-c", AGAIN, how], capture_output=True, text=True, check=True).stdout
    done, faults = out.split()
    return done == "True", int(faults)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's")
class TestKeep:
    def test_memory_is_not_cleared_again(self, monkeypatch):
        (kept, faults), (_, usual) = _run(monkeypatch, "kept"), _run(monkeypatch, "usual")
        assert kept
        assert faults < 100 < usual

    def test_what_the_user_set_stands(self, monkeypatch):
        assert not _run(monkeypatch, "kept", MALLOC_ARENA_MAX="2")[0]

    def test_accelerators_change_nothing(self, monkeypatch):
        monkeypatch.delenv("JAX_PLATFORMS", raising=False)
        monkeypatch.setattr(memory.importlib.metadata, "entry_points", lambda group: ("xla_cuda12",))
        assert not memory.keep()
