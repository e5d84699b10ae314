"""Held-out accuracy of a student: generate, grade, summarise; the reverse KL to the teacher if it is wanted."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from motab_jax.config import UserError
from motab_jax.config.prompts import EvalSection
from motab_jax.distill import Objective, TokenLoss, build_targets
from motab_jax.distill.objective import batch_loss, token_weights
from motab_jax.evaluation.metrics import Graded, summarise
from motab_jax.grading.grade import grade
from motab_jax.models.transformer import Model
from motab_jax.rollout import RolloutConfig, rollout
from motab_jax.rollout.config import SamplingSpec
from motab_jax.rollout.record import Row
from motab_jax.rollout.row_groups import run_per_group
from motab_jax.rollout.trajectory import KEPT
from motab_jax.runtime.hosts import fetch
from motab_jax.runtime.mesh import check_batch
from motab_jax.session.prompts import EncodedPrompts, held_out_prompts
from motab_jax.session.session import Session


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Evaluates students of one shape; its programs compile once."""

    session: Session
    section: EvalSection
    prompts: EncodedPrompts
    config: RolloutConfig
    generate: Callable
    reverse_kl: Callable | None  # its jitted program, if it is wanted

    def __call__(self, student: Model, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
        """Figures of a student in the serve layout; `problems` holds one entry a completion."""
        samples, size = self.section.samples, self.section.batch_size
        work = [(i, s) for i in range(len(self.prompts.prompts)) for s in range(samples)]
        graded, problems, kl_sum, kl_tokens = [], [], 0.0, 0
        for start in range(0, len(work), size):
            part = work[start : start + size]
            texts, kl, count = self._batch(student, part, size)
            kl_sum, kl_tokens = kl_sum + kl, kl_tokens + count
            for (index, sample), (text, length, finish) in zip(part, texts, strict=True):
                graded.append(self._grade(index, text, length, finish))
                problems.append(self._problem(graded[-1], sample, text, finish))
            if progress is not None:
                progress(min(start + size, len(work)), len(work))
        found = {"name": self.name, **summarise(graded)}
        if kl_tokens:
            found["reverse_kl"] = kl_sum / kl_tokens
        return {**found, "problems": problems}

    @property
    def name(self) -> str:
        """What is evaluated: the preset, else the source."""
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

    def _batch(self, student: Model, part, size: int):
        """Generate one batch, filled up with its own last row; only the real rows are returned."""
        samples = self.section.samples
        padded = part + [part[-1]] * (size - len(part))
        prompts = self.prompts.batch([i for i, _ in padded], [i * samples + s for i, s in padded], self.session.mesh)
        judge = self.session.teacher if self.reverse_kl is not None else None
        trajectory = self.generate(student, judge, prompts, jax.random.key(self.session.config.run.seed), self.config)
        kl, count = 0.0, 0
        if self.reverse_kl is not None:
            real = jnp.arange(size) < len(part)
            sums = self.reverse_kl(student, judge, trajectory, real, vocab_size=self.session.vocab_size)
            kl, count = (float(x) for x in sums)
        host = fetch(trajectory.slim(), self.session.mesh)
        rows = [Row(host, row) for row in range(len(part))]
        texts = [
            (self.session.decode(r.tokens[r.discarded_by == KEPT].tolist()), len(r.tokens), r.finish) for r in rows
        ]
        return texts, kl, count


def make_evaluator(session: Session, section: EvalSection, prompts: EncodedPrompts) -> Evaluator:
    """An evaluator with its jitted programs; checks that the batch fits the mesh."""
    check_batch(session.mesh, section.batch_size, "eval.batch_size")
    config = session.rollout.replace(
        monitor=dataclasses.replace(session.rollout.monitor, enabled=False),
        score_after=True,
        targets=dataclasses.replace(session.rollout.targets, kind="hidden", dtype=None),
        sampling=SamplingSpec(section.temperature, 0, section.top_p),
        max_new_tokens=section.max_new_tokens or session.config.rollout.max_new_tokens,
    )

    in_each = run_per_group(rollout, session.mesh, (False, False, True, False))

    def generate_to_evaluate(*arguments):  # compilations are counted by the function's name
        return in_each(*arguments)

    reverse_kl = jax.jit(_divergence, static_argnames="vocab_size") if section.reverse_kl else None
    return Evaluator(session, section, prompts, config, jax.jit(generate_to_evaluate), reverse_kl)


def _divergence(student: Model, teacher: Model, trajectory, real, *, vocab_size: int):
    """Sum over the real rows' tokens of KL(student || teacher) in nats, and the number of tokens."""
    objective = Objective(student=TokenLoss("reverse_kl"), vocab_size=vocab_size)
    batch = build_targets(trajectory, target="spliced", transition=jnp.zeros((0,), jnp.int32))
    batch = dataclasses.replace(batch, kinds=jnp.where(real[:, None], batch.kinds, 0))
    weight = token_weights(batch.kinds, objective)
    _, sums = batch_loss(student.params, student.config, teacher, batch, weight, objective)
    return jnp.sum(sums), jnp.sum(batch.kinds > 0)


def open_evaluators(session: Session) -> list[Evaluator]:
    """One for each benchmark. UserError, before any work, where there is nothing held out."""
    found = []
    for section in session.config.eval.benchmarks():
        prompts = held_out_prompts(session, section)
        if prompts is None:
            source = session.config.data.source
            raise UserError(
                f"data.source={source} has no held-out split; set eval.source (and eval.path), or eval.preset"
            )
        found.append(make_evaluator(session, section, prompts))
    return found
