"""The training plans of the shipped pair: two architectures, and what each trains on, in which order, how long.

Left out: the training itself, which is build.py.
"""

import dataclasses
import random
from collections.abc import Callable
from types import ModuleType
from typing import Any

from motab_jax.data.tasks import arithmetic, pointers
from motab_jax.models.architecture import ModelConfig

MarkedText = tuple[str, list[bool]]  # a text, and which of its characters are trained on


@dataclasses.dataclass(frozen=True)
class Sums:
    """Rows of a batch: arithmetic problems of min_terms..max_terms numbers, solved, padded to `columns`."""

    min_terms: int
    max_terms: int
    columns: int
    rows: int = 64
    task = arithmetic

    def sample(self, rng: random.Random) -> MarkedText:
        """One text, and which of its characters are trained on."""
        lengths = {"min_terms": self.min_terms, "max_terms": self.max_terms}
        problem = _draw_train(lambda: arithmetic.sample_problem(rng, **lengths))
        return _solved(problem.prompt, arithmetic.solution(problem))


@dataclasses.dataclass(frozen=True)
class Hops:
    """Rows of a batch: problems of min_hops..max_hops hops through maps of `entries` arrows, solved."""

    min_hops: int
    max_hops: int
    entries: int
    columns: int
    rows: int = 64
    task = pointers

    def sample(self, rng: random.Random) -> MarkedText:
        """One text, and which of its characters are trained on."""
        lengths = {"min_hops": self.min_hops, "max_hops": self.max_hops, "entries": self.entries}
        problem = _draw_train(lambda: pointers.sample_problem(rng, **lengths))
        return _solved(problem.prompt, pointers.solution(problem))


@dataclasses.dataclass(frozen=True)
class Arrows:
    """Rows of a batch: maps of `entries` arrows, each given twice in two orders: `kf,Qw,Qw,kf`.

    Trained are the keys that the arrows of the second copy lead to. This is no task; it teaches to look up a key.
    """

    entries: int
    columns: int
    rows: int
    task = None

    def sample(self, rng: random.Random) -> MarkedText:
        """One text, and which of its characters are trained on."""
        keys = rng.sample(pointers.KEYS, 2 * self.entries)
        arrows = [a + b for a, b in zip(keys[::2], keys[1::2], strict=True)]
        text = ",".join(arrows + rng.sample(arrows, len(arrows)))
        return text, [n % 3 == 1 and n > 3 * self.entries for n in range(len(text))]


@dataclasses.dataclass(frozen=True)
class WrongHops:
    """Rows of a batch: like Hops, but one line, which is not trained on, has a key without an arrow.

    After a key without an arrow the next key is random. This is no task; it teaches high entropy after a mistake. A
    model trained on golden completions alone continues from a key that resembles the wrong one, with high probability.
    """

    min_hops: int
    max_hops: int
    entries: int
    columns: int
    rows: int
    task = None

    def sample(self, rng: random.Random) -> MarkedText:
        """One text, and which of its characters are trained on."""
        lengths = {"min_hops": self.min_hops, "max_hops": self.max_hops, "entries": self.entries}
        problem = _draw_train(lambda: pointers.sample_problem(rng, **lengths))
        target = dict(problem.arrows)
        text, key, wrong_line = problem.prompt, problem.start, rng.randint(1, problem.hops - 1)
        trained = [False] * len(text)
        for line in range(1, problem.hops + 1):
            key = target.get(key) or rng.choice(pointers.KEYS)
            if line == wrong_line:
                key = rng.choice([key for key in pointers.KEYS if key not in target])
            text += f"{key}{problem.hops - line}\n"
            trained += [line != wrong_line, True, True]
        return f"{text}#{key}", [*trained, True, True]


def _draw_train(draw: Callable[[], Any]) -> Any:
    """The next problem of the split `train`."""
    problem = draw()
    while arithmetic.split_of(problem.prompt) != "train":
        problem = draw()
    return problem


def _solved(prompt: str, completion: str) -> MarkedText:
    return prompt + completion, [False] * len(prompt) + [True] * len(completion)


RowsPlan = Sums | Hops | Arrows | WrongHops


@dataclasses.dataclass(frozen=True)
class Stage:
    """`steps` updates on batches of the same composition."""

    steps: int
    rows: tuple[RowsPlan, ...]


@dataclasses.dataclass(frozen=True)
class Round:
    """Stages under one learning-rate schedule; every round starts with a new optimizer."""

    stages: tuple[Stage, ...]
    learning_rate: float
    schedule: str

    @property
    def steps(self) -> int:
        """The updates of all stages."""
        return sum(stage.steps for stage in self.stages)


@dataclasses.dataclass(frozen=True)
class Plan:
    """How one model of the pair is trained; with `wanted`, until its greedy accuracy is in that range."""

    config: ModelConfig
    rounds: tuple[Round, ...]
    wanted: tuple[float, float] | None = None
    check_every: int = 50

    @property
    def tasks(self) -> list[ModuleType]:
        """The tasks of the last stage, which the model can solve at the end."""
        return [rows.task for rows in self.rounds[-1].stages[-1].rows if rows.task]


def architecture(*, layers: int, width: int, heads: int, head_dim: int, mlp: int) -> ModelConfig:
    """A Qwen3 decoder with the tasks' vocabulary."""
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


SHORT, MIDDLE, FULL = Sums(2, 3, 32), Sums(2, 6, 64), Sums(5, 11, 112)
MAPS = (Hops(4, 8, 12, 68, rows=16), WrongHops(4, 8, 12, 68, rows=8))

# The student's stages are an upper limit: it reaches the wanted accuracy long before their end.
PLANS = {
    "teacher": Plan(
        architecture(layers=4, width=128, heads=4, head_dim=32, mlp=256),
        (
            Round(
                (
                    Stage(220, (Arrows(3, 20, rows=192),)),
                    Stage(160, (Hops(2, 4, 4, 32, rows=96),)),
                    Stage(120, (Hops(4, 8, 12, 68, rows=64),)),
                ),
                3e-3,
                "constant",
            ),
            Round((Stage(60, (SHORT, *MAPS)), Stage(240, (MIDDLE, *MAPS)), Stage(360, (FULL, *MAPS))), 3e-3, "cosine"),
            Round((Stage(240, (FULL, *MAPS)),), 1e-3, "cosine"),
            Round((Stage(360, (FULL, *MAPS)),), 1e-3, "cosine"),
        ),
    ),
    "student": Plan(
        architecture(layers=2, width=64, heads=4, head_dim=32, mlp=192),
        (Round((Stage(100, (SHORT,)), Stage(300, (MIDDLE,)), Stage(2000, (FULL,))), 2e-3, "constant"),),
        wanted=(0.25, 0.40),
    ),
}
