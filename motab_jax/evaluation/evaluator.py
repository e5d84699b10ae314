"""Held-out evaluation of a student: generate, grade, summarise; on request the reverse KL to the teacher.

Left out: the summary's formulas (metrics.py), tables (show.py), the graders (grading/).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from motab_jax.config import UserError
from motab_jax.config.prompts import EvalSection
from motab_jax.distill import Objective, TokenLoss, build_targets
from motab_jax.distill.objective import batch_loss, token_weights
from motab_jax.evaluation.metrics import Graded, summarise
from motab_jax.grading.grade import grade
from motab_jax.models.transformer import Model
from motab_jax.rollout import RolloutConfig, Trajectory, rollout
from motab_jax.rollout.config import SamplingSpec
from motab_jax.rollout.record import Row
from motab_jax.rollout.row_groups import run_per_group
from motab_jax.rollout.trajectory import KEPT
from motab_jax.runtime.hosts import fetch
from motab_jax.runtime.mesh import batch_shard_count
from motab_jax.session.prompts import EncodedPrompts, held_out_prompts
from motab_jax.session.session import Session


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Evaluates students of one architecture; its programs compile once."""

    session: Session
    section: EvalSection
    prompts: EncodedPrompts
    rollout_config: RolloutConfig
    generate: Callable  # jitted: (student, teacher, prompts, key, config) -> trajectories
    reverse_kl: Callable | None  # jitted: see _reverse_kl_sum; None: not requested

    def __call__(self, student: Model, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
        """Generate a completion for each prompt and sample, grade them, summarise.

        Args:
          student: in the serving layout.
          progress: called after each batch with the completions so far and in all.

        Returns:
          The metrics of `summarise`, the benchmark's `name`, `reverse_kl` in nats a token where it was requested, and
          `problems`: one dictionary for each completion.
        """
        samples = self.section.samples
        jobs = [(index, sample) for index in range(len(self.prompts.prompts)) for sample in range(samples)]
        size = min(self.section.batch_size, len(jobs))
        graded, problems, kl_sum, kl_tokens = [], [], 0.0, 0
        for start in range(0, len(jobs), size):
            batch = jobs[start : start + size]
            completions, kl, count = self._generate_batch(student, batch, size)
            kl_sum, kl_tokens = kl_sum + kl, kl_tokens + count
            for (index, sample), (text, length, finish) in zip(batch, completions, strict=True):
                graded.append(self._grade(index, text, length, finish))
                problems.append(self._problem(graded[-1], sample, text, finish))
            if progress is not None:
                progress(min(start + size, len(jobs)), len(jobs))
        metrics = {"name": self.name, **summarise(graded)}
        if kl_tokens:
            metrics["reverse_kl"] = kl_sum / kl_tokens
        return {**metrics, "problems": problems}

    @property
    def name(self) -> str:
        """The benchmark's name: the preset, or else the source."""
        preset, source = self.section.preset, self.section.source
        return str(preset or source or self.session.config.data.source)

    def _grade(self, index: int, text: str, length: int, finish: str) -> Graded:
        prompt = self.prompts.prompts[index]
        task = (prompt.extra or {}).get("task", "")
        return Graded(index, task, grade(prompt, text), length, finish == "length")

    def _problem(self, graded: Graded, sample: int, text: str, finish: str) -> dict[str, Any]:
        """The line of a completion in output=FILE.jsonl."""
        return {
            "benchmark": self.name,
            "id": self.prompts.prompts[graded.problem].id,
            "sample": sample,
            "correct": graded.correct,
            "score": graded.score,
            "text": text,
            "tokens": graded.tokens,
            "finish_reason": finish,
        }

    def _generate_batch(
        self, student: Model, batch: list[tuple[int, int]], size: int
    ) -> tuple[list[tuple[str, int, str]], float, float]:
        """Generate a batch of (prompt, sample) pairs, in at least `size` rows, so that all batches are of one shape.

        Returns:
          (text, tokens, finish reason) of each pair; the sum of the reverse KL over their tokens; those tokens.
        """
        samples, session = self.section.samples, self.session
        indices, row_ids = [i for i, _ in batch], [i * samples + s for i, s in batch]
        prompts = self.prompts.batch(indices, row_ids, session.mesh, rows=size)
        teacher = session.teacher if self.reverse_kl is not None else None
        key = jax.random.key(session.config.run.seed)
        trajectory = self.generate(student, teacher, prompts, key, self.rollout_config)
        kl, count = 0.0, 0.0
        if self.reverse_kl is not None:
            sums = self.reverse_kl(student, teacher, trajectory)
            kl, count = (float(x) for x in sums)
        host = fetch(trajectory.slim(), session.mesh)
        rows = [Row(host, row) for row in range(len(batch))]
        completions = [
            (session.decode(r.tokens[r.discarded_by == KEPT].tolist()), len(r.tokens), r.finish) for r in rows
        ]
        return completions, kl, count


def make_evaluator(session: Session, section: EvalSection, prompts: EncodedPrompts) -> Evaluator:
    """An evaluator of one benchmark.

    Args:
      session: the models, tokenizer and mesh.
      section: sampling, batch size and whether the reverse KL is requested.
      prompts: the benchmark's.
    """
    rollout_config = session.rollout_config.replace(
        monitor=dataclasses.replace(session.rollout_config.monitor, enabled=False),
        score_after=True,
        targets=dataclasses.replace(session.rollout_config.targets, kind="hidden", dtype=None),
        sampling=SamplingSpec(section.temperature, 0, section.top_p),
        max_new_tokens=section.max_new_tokens or session.config.rollout.max_new_tokens,
    )

    per_group = run_per_group(rollout, session.mesh, (False, False, True, False))

    def generate_to_evaluate(*arguments):  # compilations are counted by the function's name
        return per_group(*arguments)

    reverse_kl = None
    if section.reverse_kl:
        reverse_kl = jax.jit(
            functools.partial(_reverse_kl_sum, vocab_size=session.vocab_size, groups=batch_shard_count(session.mesh))
        )
    return Evaluator(session, section, prompts, rollout_config, jax.jit(generate_to_evaluate), reverse_kl)


def _reverse_kl_sum(
    student: Model, teacher: Model, trajectory: Trajectory, *, vocab_size: int, groups: int
) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """The sum over all tokens of KL(student || teacher) in nats, and the number of tokens.

    groups: shards of the rows, each of which computes its own tokens' logits.
    """
    objective = Objective(student=TokenLoss("reverse_kl"), vocab_size=vocab_size)
    batch = build_targets(trajectory, target="spliced", transition=jnp.zeros((0,), jnp.int32))
    weight = token_weights(batch.kinds, objective)
    _, sums = batch_loss(student.params, student.config, teacher, batch, weight, objective, groups=groups)
    return jnp.sum(sums), jnp.sum(batch.kinds > 0)


def open_evaluators(session: Session) -> list[Evaluator]:
    """An evaluator for each benchmark of the configuration.

    Raises:
      UserError: nothing is held out.
    """
    evaluators = []
    for section in session.config.eval.benchmarks():
        prompts = held_out_prompts(session, section)
        if prompts is None:
            source = session.config.data.source
            raise UserError(
                f"data.source={source} has no held-out split; set eval.source (and eval.path), or eval.preset"
            )
        evaluators.append(make_evaluator(session, section, prompts))
    return evaluators
