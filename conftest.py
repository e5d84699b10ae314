"""Tests run on 8 virtual CPU devices and keep compiled programs between runs."""

import gc
import importlib.util
from pathlib import Path

import tests.environment  # isort: skip

import jax
import pytest
from jaxtyping import install_import_hook

import tests.typecheck  # noqa: F401  (the hook looks it up by name)

# Shapes, dtypes and types of every call are checked. The hook comes before anything of the package is imported.
install_import_hook("motab_jax", "tests.typecheck.check")

from motab_jax.runtime.compilation import enable_compilation_cache  # noqa: E402

# The oracles need torch, which only the extra [parity] installs.
collect_ignore = [] if importlib.util.find_spec("torch") else ["tests/parity", "tests/oracle.py"]


# Linux gives a process 65,530 memory maps and XLA:CPU takes dozens for a program; without any left it crashes.
MANY_MAPS = 15_000

enable_compilation_cache()
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_collection_finish():
    """What is imported by now stays: the garbage collector need not look at it again and again."""
    gc.collect()
    gc.freeze()


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
