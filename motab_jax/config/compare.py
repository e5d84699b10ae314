"""Two configurations compared: which keys differ, and which of them a run may change when it resumes."""

from collections.abc import Collection
from typing import Any

from motab_jax.config import Config

# Keys and sections that may differ when a run goes on: they don't change what was computed so far. Another mesh gives
# the same numbers but for their last bits.
FREE = frozenset(
    {"run.steps", "run.epochs", "run.keep", "run.save_every", "run.sample_every", "run.dir", "run.name", "log", "mesh"}
)


def differences(old: Config, new: Config, free: Collection[str] = FREE) -> list[str]:
    """Dotted keys that differ, but for those in `free` (keys and whole sections)."""
    before, after = _flat(old), _flat(new)
    return [
        key
        for key, value in before.items()
        if key.split(".")[0] not in free and key not in free and value != after[key]
    ]


def _flat(config: Config) -> dict[str, Any]:
    """Every key and its value; the keys of a section as section.name."""
    found: dict[str, Any] = {}
    for name, value in config.model_dump().items():
        found |= {f"{name}.{key}": each for key, each in value.items()} if isinstance(value, dict) else {name: value}
    return found
