"""The hub's models in runs of several processes: who shares a cache with the first process waits for its download.

Left out: buckets, whose files each host copies once by itself (staging.py).
"""

import contextlib
import secrets
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub.constants
import jax

from motab_jax.config.errors import RunError
from motab_jax.runtime.distributed import barrier, is_main
from motab_jax.runtime.hosts import from_main
from motab_jax.runtime.hub import find_folder, may_be_hub_id


def download_once(models: Sequence[tuple[str | Path, Sequence[str]]], seconds: int) -> None:
    """Fill the caches of all processes, each by one download, before any process reads from them.

    Processes whose cache isn't the first process's download at the same time as it. With one process, and where no
    name can be the hub's, nothing is done. What can't be downloaded is left to `find_folder`, which says so in each
    process. All processes must call this with the same models.

    Args:
      models: folders or hub ids, each with the patterns of the files that are needed.
      seconds: how long to wait for the downloads.

    Raises:
      PeerMissing: some processes did not come.
    """
    wanted = [(model, files) for model, files in models if may_be_hub_id(model)]
    if jax.process_count() == 1 or not wanted:
        return
    cache = Path(huggingface_hub.constants.HF_HUB_CACHE)
    probe = cache / f".motab-jax-{from_main(secrets.randbelow(2**31))}"
    if is_main():
        with contextlib.suppress(OSError):  # a cache that can't be written holds the models already
            cache.mkdir(parents=True, exist_ok=True)
            probe.touch()
    barrier("the first process's cache is known")
    if is_main() or not probe.exists():
        for model, files in wanted:
            with contextlib.suppress(RunError):
                find_folder(model, files)
    barrier("the models are downloaded", seconds)
    if is_main():
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)
