"""What is set before jax is imported: 8 virtual CPU devices, and machine code that compiles fast."""

import os
from importlib.metadata import version

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Compiling is most of the tests' time, and the least optimised machine code comes soonest. Where XLA_FLAGS names a
# level, as .ci/run does for a pass over code as users run it, that and XLA's own emitters are taken.
FLAGS = {"xla_force_host_platform_device_count": "8"}
given = os.environ.get("XLA_FLAGS", "")
if "xla_backend_optimization_level" not in given:
    FLAGS["xla_backend_optimization_level"] = "0"
    if version("jaxlib").startswith("0.10."):  # a newer XLA ends the process at a flag that it does not know
        FLAGS["xla_cpu_use_fusion_emitters"] = "false"
added = [f"--{name}={value}" for name, value in FLAGS.items() if name not in given]
os.environ["XLA_FLAGS"] = " ".join([given, *added]).strip()
