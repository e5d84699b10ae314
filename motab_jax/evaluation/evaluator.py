"""Held-out evaluation of a student: generate, grade, summarise; on request the reverse KL to the teacher.

Left out: its programs (programs.py), the summary's formulas (metrics.py), tables (show.py), the graders (grading/).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from motab_jax.config import UserError
from motab_jax.config.prompts import EvalSection
from motab_jax.evaluation.metrics import Graded, summarise
from motab_jax.evaluation.partial import Partial, PartialFile
from motab_jax.evaluation.programs import EvaluationPrograms, make_evaluation_programs
from motab_jax.grading.grade import judge
from motab_jax.models.transformer import Model
from motab_jax.rollout import Trajectory
from motab_jax.rollout.record import Row
from motab_jax.rollout.sampling import Stream, stream_key
from motab_jax.rollout.trajectory import KEPT
from motab_jax.runtime.distributed import is_main
from motab_jax.runtime.hosts import fetch
from motab_jax.session.prompts import EncodedPrompts, held_out_prompts
from motab_jax.session.session import Session


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Evaluates students of one architecture; its programs compile once."""

    session: Session
    section: EvalSection
    prompts: EncodedPrompts
    programs: EvaluationPrograms

    def __call__(
        self,
        student: Model,
        progress: Callable[[int, int], None] | None = None,
        *,
        stopped: Callable[[], bool] = lambda: False,
        partial: PartialFile | None = None,
    ) -> dict[str, Any] | None:
        """Generate a completion for each prompt and sample, grade them, summarise.

        A batch is graded while the next one is generated, by the main process alone.

        Args:
          student: in the serving layout.
          progress: called after each batch with the completions so far and in all.
          stopped: asked before each batch, in all processes, whether to stop; the same in all of them.
          partial: where to keep the grades so far, and to begin with those that are there; `problems` lacks these.

        Returns:
          None where it was stopped. Else the metrics of `summarise`, the benchmark's `name`, `reverse_kl` in nats a
          token where it was requested, and `problems`: one dictionary for each completion. In other processes than the
          main one, `name` and no problems.
        """
        samples = self.section.samples
        jobs = [(index, sample) for index in range(len(self.prompts.prompts)) for sample in range(samples)]
        size = min(self.programs.rows, len(jobs))
        begin, done = partial.load(rows=size, of=len(jobs)) if partial is not None else (0, Partial([]))
        problems, batches = [], range(begin, len(jobs), size)
        generated, kl = [], (0.0, 0.0)  # of the batch that is generated and not yet graded

        def grade() -> None:
            nonlocal done
            results = [self._grade(*completion) for completion in generated]
            graded = [*done.graded, *(graded for graded, _ in results)]
            problems.extend(problem for _, problem in results)
            done = Partial(graded, done.kl_sum + kl[0], done.kl_tokens + kl[1])
            if partial is not None and generated and len(graded) < len(jobs):
                partial.save(done, rows=size, of=len(jobs))

        for start in batches:
            if stopped():
                grade()
                return None
            batch = jobs[start : start + size]
            trajectory, sums = self._dispatch_batch(student, batch, size)
            grade()
            kl = (0.0, 0.0) if sums is None else (float(sums[0]), float(sums[1]))
            host = fetch(trajectory, self.session.mesh)
            generated = [(*job, Row(host, row)) for row, job in enumerate(batch)] if is_main() else []
            if progress is not None:
                progress(min(start + size, len(jobs)), len(jobs))
        grade()
        if partial is not None:
            partial.clear()
        if not is_main():
            return {"name": self.name, "problems": []}
        metrics = {"name": self.name, **summarise(done.graded)}
        if done.kl_tokens:
            metrics["reverse_kl"] = done.kl_sum / done.kl_tokens
        return {**metrics, "problems": problems}

    @property
    def name(self) -> str:
        """The benchmark's name: the preset, or else the source."""
        preset, source = self.section.preset, self.section.source
        return str(preset or source or self.session.config.data.source)

    def _grade(self, index: int, sample: int, row: Row) -> tuple[Graded, dict[str, Any]]:
        """A completion's grade, and its line in output=FILE.jsonl."""
        prompt, text = self.prompts.prompts[index], self.session.decode(row.tokens[row.discarded_by == KEPT].tolist())
        opened_thought = self.session.opens_thought(self.prompts.tokens[index])
        verdict = judge(prompt, text, opened_thought=opened_thought)
        task = (prompt.extra or {}).get("task", "")
        problem = {
            "benchmark": self.name,
            "id": prompt.id,
            "sample": sample,
            "prompt": prompt.prompt,
            "text": text,
            "answer": prompt.answer,
            "extracted": verdict.answer,
            "correct": verdict.correct,
            "score": verdict.score,
            "tokens": len(row.tokens),
            "finish_reason": row.finish,
        }
        return Graded(index, task, verdict.score, len(row.tokens), row.finish == "length"), problem

    def _dispatch_batch(
        self, student: Model, batch: list[tuple[int, int]], size: int
    ) -> tuple[Trajectory, tuple[jax.Array, jax.Array] | None]:
        """Have a batch of (prompt, sample) pairs generated, in at least `size` rows: all batches are of one shape.

        Returns:
          The trajectories, without the teacher's targets; the sum of the reverse KL over the pairs' tokens and those
          tokens, where it is requested. Nothing waits for the devices.
        """
        samples, session, programs = self.section.samples, self.session, self.programs
        indices, row_ids = [i for i, _ in batch], [i * samples + s for i, s in batch]
        prompts = self.prompts.batch(indices, row_ids, session.mesh, rows=size)
        teacher = session.teacher if programs.reverse_kl is not None else None
        key = stream_key(session.config.run.seed, Stream.EVALUATION)
        trajectory = programs.generate(student, teacher, prompts, key, programs.rollout_config)
        sums = None
        if programs.reverse_kl is not None:
            sums = programs.reverse_kl(student, teacher, trajectory)
        return trajectory.slim(), sums


def make_evaluator(
    session: Session, section: EvalSection, prompts: EncodedPrompts, programs: EvaluationPrograms | None = None
) -> Evaluator:
    """An evaluator of one benchmark.

    Args:
      session: the models, tokenizer and mesh.
      section: sampling, batch size and whether the reverse KL is requested.
      prompts: the benchmark's.
      programs: those of the section; None: they are made.
    """
    return Evaluator(session, section, prompts, programs or make_evaluation_programs(session, section))


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
