"""Chips with their vendors' peak rates, and descriptions of TPU topologies that this machine need not have.

Left out: what a program needs on them (aot.py, roofline.py).
"""

import importlib.util
import os
from typing import Any, NamedTuple

from motab_jax.config import UserError

# libtpu compiles without touching a TPU: it neither looks for one nor stops where another process has it.
COMPILE_ONLY = {
    "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_ACCELERATOR_TYPE": "v5p-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
}  # fmt: skip


class Chip(NamedTuple):
    """Peak rates of one device, as the vendor publishes them."""

    flops: float  # dense bfloat16 FLOP/s
    bandwidth: float  # bytes/s of its memory
    memory: float  # bytes
    links: float  # bytes/s of all its links together, both ways


# A device of TPU7x is one of a chip's two halves.
CHIPS = {
    "v4": Chip(275e12, 1228e9, 32 * 2**30, 300e9),
    "v5e": Chip(197e12, 819e9, 16 * 2**30, 200e9),
    "v5p": Chip(459e12, 2765e9, 95 * 2**30, 600e9),
    "v6e": Chip(918e12, 1640e9, 32 * 2**30, 448e9),
    "tpu7x": Chip(1153.5e12, 3690e9, 96 * 2**30, 600e9),
    "h100": Chip(989e12, 3350e9, 80e9, 900e9),
    "h200": Chip(989e12, 4800e9, 141e9, 900e9),
}


def topology_devices(topology: str) -> list[Any]:
    """Descriptions of the devices of a TPU topology such as `v5e:2x2`; programs can be compiled for them.

    Raises:
      UserError: the topology is unknown, or libtpu (the extra [tpu]) is not installed.
    """
    for name, value in COMPILE_ONLY.items():
        os.environ.setdefault(name, value)
    from jax.experimental import topologies

    fused = {"chip_config_name": "megacore"} if topology.startswith("v4:") else {}  # its two cores are one device
    try:
        return list(topologies.get_topology_desc(topology, platform="tpu", **fused).devices)
    except (RuntimeError, NotImplementedError, ValueError) as error:
        if importlib.util.find_spec("libtpu") is None:
            raise UserError(f"topology={topology}: plan needs the TPU compiler; pip install '.[tpu]'") from None
        reason = str(error).splitlines()[0]
        raise UserError(f"topology={topology}: {reason}; give one such as v5e:2x2, v5p:2x2x1 or v6e:2x2") from None
