"""How the shipped pair is trained: its two architectures, and what they learn, in which order, for how long.

Left out: the training itself, which is build.py.
"""

import dataclasses
import random
from types import ModuleType

from motab_jax.data import arithmetic, pointers
from motab_jax.models.architecture import ModelConfig


@dataclasses.dataclass(frozen=True)
class Sums:
    """A batch's part: `rows` arithmetic chains of min_terms..max_terms numbers, `columns` wide."""

    min_terms: int
    max_terms: int
    columns: int
    rows: int = 64
    task = arithmetic

    def draw(self, rng: random.Random) -> arithmetic.Problem:
        return arithmetic.sample_problem(rng, min_terms=self.min_terms, max_terms=self.max_terms)


@dataclasses.dataclass(frozen=True)
class Hops:
    """A batch's part: `rows` chains of min_hops..max_hops hops through maps of `entries` arrows, `columns` wide."""

    min_hops: int
    max_hops: int
    entries: int
    columns: int
    rows: int = 64
    task = pointers

    def draw(self, rng: random.Random) -> pointers.Problem:
        return pointers.sample_problem(rng, min_hops=self.min_hops, max_hops=self.max_hops, entries=self.entries)


@dataclasses.dataclass(frozen=True)
class Stage:
    """Part of a training plan: `steps` batches of the same make."""

    steps: int
    parts: tuple[Sums | Hops, ...]


@dataclasses.dataclass(frozen=True)
class Round:
    """Stages under one learning-rate schedule; every round starts with a fresh optimizer."""

    stages: tuple[Stage, ...]
    learning_rate: float
    schedule: str
    new_letters: bool = False  # the rounds before had none: see spread_letters

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    @property
    def tasks(self) -> list[ModuleType]:
        """The tasks of its last stage."""
        return [part.task for part in self.stages[-1].parts]


@dataclasses.dataclass(frozen=True)
class Plan:
    """How one model of the pair is made. With `wanted` it stops as soon as its greedy accuracy lies in that range."""

    config: ModelConfig
    rounds: tuple[Round, ...]
    wanted: tuple[float, float] | None = None
    check_every: int = 50


def architecture(*, layers: int, width: int, heads: int, head_dim: int, mlp: int) -> ModelConfig:
    """A Qwen3 decoder with the task's vocabulary."""
    return ModelConfig(
        model_type="qwen3",
        vocab_size=len(arithmetic.SPECIAL_TOKENS) + len(arithmetic.ALPHABET),
        width=width,
        mlp_width=mlp,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=heads // 2,
        head_dim=head_dim,
        max_positions=512,
        tied=True,
        qk_norm=True,
    )


SHORT, MIDDLE, FULL = (Sums(2, 3, 32),), (Sums(2, 6, 64),), (Sums(5, 11, 112),)

# The student's stages are an upper limit: it stops at the wanted accuracy long before their end.
PLANS = {
    "teacher": Plan(
        architecture(layers=4, width=128, heads=4, head_dim=32, mlp=256),
        (
            Round((Stage(60, SHORT), Stage(300, MIDDLE), Stage(440, FULL)), 3e-3, "cosine"),
            Round((Stage(240, FULL),), 1e-3, "cosine"),
        ),
    ),
    "student": Plan(
        architecture(layers=2, width=64, heads=4, head_dim=32, mlp=192),
        (Round((Stage(100, SHORT), Stage(300, MIDDLE), Stage(2000, FULL)), 2e-3, "constant"),),
        wanted=(0.25, 0.40),
    ),
}
