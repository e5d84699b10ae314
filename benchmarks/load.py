"""Loading a model over several processes: what each of them holds at most, against one process that loads it all.

    python benchmarks/load.py [--json FILE] [--gigabytes 4]

A random Qwen3 shape of so many gigabytes (bfloat16) is written to a temporary folder, then loaded by one process with 8
virtual CPU devices, and by two with 4 each. Here a device's memory is the host's, so a process holds its share of the
weights and what it reads with; the peak is the kernel's count of the process's resident memory.
"""

import functools
import os
import resource
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import bench

from motab_jax.models.architecture import ModelConfig
from motab_jax.models.hf import weight_names
from motab_jax.models.hf.tensorfile import DTYPES, Entry, write_tensors
from motab_jax.runtime.hub import write_json

CHILD = "--of"
LIMIT = 600  # seconds


def shape_of(gigabytes: float) -> ModelConfig:
    """A Qwen3 shape of about so many gigabytes of bfloat16: a layer has some 106 million weights."""
    layers = max(2, round(gigabytes * 1e9 / 2 / 106e6))
    return ModelConfig("qwen3", 32_000, 3072, 8192, layers, 24, 8, 128, 4096, qk_norm=True, tied=True)


def write_model(folder: Path, shape: ModelConfig) -> int:
    """Random weights, a tensor at a time; returns their bytes."""
    rng, dtype = np.random.default_rng(0), DTYPES["BF16"]

    def entry(tensor: weight_names.Tensor) -> Entry:
        return Entry(
            tensor.name, tensor.shape, dtype, lambda: rng.standard_normal(tensor.shape, np.float32).astype(dtype)
        )

    entries = [entry(tensor) for tensor in weight_names.tensors(shape)]
    write_tensors(folder, entries, 1_000_000_000)
    write_json(folder / "config.json", shape.to_hf())
    return sum(entry.size for entry in entries)


def load(folder: str) -> None:
    """In a process of its own: load, and print the peak of resident memory before and after."""
    import jax

    from motab_jax.models.hf.pretrained import load_pretrained
    from motab_jax.models.hf.weight_names import load_shardings
    from motab_jax.runtime.distributed import initialize
    from motab_jax.runtime.mesh import make_mesh

    initialize()
    mesh = make_mesh(1, -1, 2)
    jax.block_until_ready(jax.numpy.zeros(8) + 1)
    before = peak()
    params, _ = load_pretrained(folder, shardings=functools.partial(load_shardings, mesh))
    jax.block_until_ready(params)
    print(before, peak())


def peak() -> int:
    """Bytes of resident memory at most, so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def processes(folder: Path, count: int, devices: int) -> list[tuple[int, int]]:
    """(peak before, peak after) of each of `count` processes that load the model together."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    flags = f"--xla_force_host_platform_device_count={devices}"
    common = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    common |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count)}
    started = [
        subprocess.Popen(
            [sys.executable, __file__, CHILD, str(folder)],
            env={**common, "JAX_PROCESS_ID": str(number)}, stdout=subprocess.PIPE, text=True,
        )
        for number in range(count)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=LIMIT)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    return [(int(before), int(after)) for before, after in (text.split() for text in said)]


def main() -> None:
    """Write, load, print."""
    parser = bench.parser(__doc__)
    parser.add_argument("--gigabytes", type=float, default=4.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        size = write_model(Path(name), shape_of(arguments.gigabytes))
        [(bare, alone)] = processes(Path(name), 1, 8)
        both = processes(Path(name), 2, 4)
    rows = [["one process, 8 devices", f"{bare / 1e9:.2f}", f"{alone / 1e9:.2f}", "1.00"]]
    rows += [[f"process {n} of 2, 4 devices", f"{before / 1e9:.2f}", f"{after / 1e9:.2f}", f"{after / alone:.2f}"]
             for n, (before, after) in enumerate(both)]  # fmt: skip
    bench.show(f"{size / 1e9:.2f} GB of bfloat16", ["", "peak before, GB", "peak, GB", "of one's"], rows)
    figures = {"model_bytes": size, "peak_alone": alone, "peak_of_two": max(after for _, after in both)}
    bench.save(arguments.json, {**figures, "ratio": figures["peak_of_two"] / alone})


if __name__ == "__main__":
    if CHILD in sys.argv:
        load(sys.argv[-1])
    else:
        main()
