"""Tests run on 8 virtual CPU devices and keep compiled programs between runs. Set before jax is imported."""

import importlib.util
import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()

import jax
import pytest

# The oracles need torch, which only the extra [parity] installs.
collect_ignore = [] if importlib.util.find_spec("torch") else ["parity"]


def _cache_folder() -> Path | None:
    """A folder of ours that no other user can write to: what lies in it is run as machine code."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "motab_jax" / "jax"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.is_symlink() or folder.stat().st_uid != os.getuid():
            return None
        folder.chmod(0o700)
    except OSError:  # a read-only home: go without
        return None
    return folder


if folder := _cache_folder():
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def devices() -> list:
    """The 8 virtual devices."""
    found = jax.devices()
    assert len(found) == 8, "conftest asks for 8 CPU devices before jax starts"
    return found
