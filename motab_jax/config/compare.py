"""Two configurations compared: which keys differ, and which of them a run may change when it resumes."""

from collections.abc import Collection
from typing import Any

from motab_jax.config import Config
from motab_jax.config.base import Section

# Keys and sections that may differ when a run resumes: what was computed so far doesn't depend on them. Another mesh
# changes the last bits of its numbers.
FREE = frozenset(
    {
        "run.steps",
        "run.epochs",
        "run.keep",
        "run.save_every",
        "run.upload_every",
        "run.sample_every",
        "run.dir",
        "run.name",
        "run.start_seconds",
        "run.heartbeat_seconds",
        "run.deterministic",
        "log",
        "mesh",
    }
)


def differences(old: Config, new: Config, free: Collection[str] = FREE) -> list[str]:
    """Dotted keys whose values differ, without those in `free` (keys and whole sections)."""
    before, after = _flat(old), _flat(new)
    return [
        key
        for key, value in before.items()
        if key.split(".")[0] not in free and key not in free and value != after[key]
    ]


def _flat(config: Config) -> dict[str, Any]:
    """Every key and its value; the keys of a section as section.name."""
    values: dict[str, Any] = {}
    for name, content in config:
        if isinstance(content, Section):
            values |= {f"{name}.{key}": value for key, value in content.model_dump().items()}
        else:
            values[name] = content
    return values
