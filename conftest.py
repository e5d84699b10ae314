"""Tests run on 8 virtual CPU devices and keep compiled programs between runs. Set before jax is imported."""

import gc
import importlib.util
import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Compiling is most of the tests' time, and the least optimised machine code comes twice as fast.
if "xla_backend_optimization_level" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0".strip()
if "xla_force_host_platform_device_count" not in os.environ["XLA_FLAGS"]:
    os.environ["XLA_FLAGS"] += " --xla_force_host_platform_device_count=8"

import jax
import pytest
from jaxtyping import install_import_hook

import tests.typecheck  # noqa: F401  (the hook looks it up by name)

# Shapes, dtypes and types of every call are checked. The hook comes before anything of the package is imported.
install_import_hook("motab_jax", "tests.typecheck.check")

from motab_jax.runtime.compilation import enable_compilation_cache  # noqa: E402

# The oracles need torch, which only the extra [parity] installs.
collect_ignore = [] if importlib.util.find_spec("torch") else ["tests/parity"]


# Linux gives a process 65,530 memory maps and XLA:CPU takes dozens for a program; without any left it crashes.
MANY_MAPS = 15_000

enable_compilation_cache()
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_collection_modifyitems(items):
    """The files that take minutes first: two workers then come to an end together."""
    items.sort(key=lambda item: "verbs" not in item.path.parts and "study" not in item.path.name)


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """Forget the compiled programs of the files before, once they hold many memory maps."""
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MANY_MAPS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def devices() -> list:
    """The 8 virtual devices."""
    found = jax.devices()
    assert len(found) == 8, "conftest asks for 8 CPU devices before jax starts"
    return found
