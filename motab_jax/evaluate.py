"""`python -m motab_jax.evaluate [CONFIG.yaml] [key=value ...]`: held-out accuracy of the configured student.

To evaluate an export, name it: student.path=runs/NAME/export. Reports avg@k and pass@k (k = eval.samples), the
standard error over problems, the truncation rate and the mean length; per-problem lines go to output=FILE.jsonl.
"""

import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from motab_jax.cli import enable_compilation_cache, open_output, read_config, run_verb, split_words
from motab_jax.config import UserError
from motab_jax.data.answers import grade, mean_and_stderr, pass_at_k
from motab_jax.distill import Objective, TokenLoss, build_targets
from motab_jax.distill.objective import batch_loss, weights_of
from motab_jax.models.transformer import Model
from motab_jax.rollout import RolloutConfig, rollout
from motab_jax.rollout.record import Row
from motab_jax.rollout.trajectory import KEPT
from motab_jax.runtime.mesh import check_batch
from motab_jax.session import EncodedPrompts, Session, held_out_prompts, open_session


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Evaluates students of one shape; its programs compile once."""

    session: Session
    prompts: EncodedPrompts
    config: RolloutConfig
    generate: Callable
    measure: Callable | None  # the reverse KL, if it is wanted

    def __call__(self, student: Model, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
        """Figures of a student in the serve layout; `problems` holds one entry a prompt."""
        samples = self.session.config.eval.samples
        work = [(i, s) for i in range(len(self.prompts.prompts)) for s in range(samples)]
        graded, kl_sum, kl_tokens = [], 0.0, 0
        size = self.session.config.eval.batch_size
        for start in range(0, len(work), size):
            part = work[start : start + size]
            texts, kl, count = self._batch(student, part, size)
            kl_sum, kl_tokens = kl_sum + kl, kl_tokens + count
            for (index, _), (text, length, finish) in zip(part, texts, strict=True):
                prompt = self.prompts.prompts[index]
                graded.append((index, grade(prompt, text), text, length, finish))
            if progress is not None:
                progress(min(start + size, len(work)), len(work))
        return self._figures(graded, samples, kl_sum / kl_tokens if kl_tokens else None)

    def _batch(self, student: Model, part, size: int):
        """Generate one batch, filled up with its own last row; only the real rows are returned."""
        samples = self.session.config.eval.samples
        padded = part + [part[-1]] * (size - len(part))
        prompts = self.prompts.batch([i for i, _ in padded], [i * samples + s for i, s in padded], self.session.mesh)
        judge = self.session.teacher if self.measure is not None else None
        trajectory = self.generate(student, judge, prompts, jax.random.key(self.session.config.run.seed), self.config)
        kl, count = 0.0, 0
        if self.measure is not None:
            real = jnp.arange(size) < len(part)
            sums = self.measure(student, judge, trajectory, real, vocab_size=self.session.vocab_size)
            kl, count = (float(x) for x in sums)
        host = jax.device_get(trajectory.slim())
        rows = [Row(host, row) for row in range(len(part))]
        texts = [
            (self.session.decode(r.tokens[r.discarded_by == KEPT].tolist()), len(r.tokens), r.finish) for r in rows
        ]
        return texts, kl, count

    def _figures(self, graded, samples: int, kl: float | None) -> dict[str, Any]:
        right: dict[int, list[bool]] = {}
        for index, good, *_ in graded:
            right.setdefault(index, []).append(good)
        mean, stderr = mean_and_stderr([float(np.mean(marks)) for marks in right.values()])
        figures = {
            "accuracy": mean,
            "stderr": stderr,
            "pass_at_k": float(np.mean([pass_at_k(samples, sum(marks), samples) for marks in right.values()])),
            "k": samples,
            "prompts": len(right),
            "truncated": float(np.mean([finish == "length" for *_, finish in graded])),
            "length_mean": float(np.mean([length for *_, length, _ in graded])),
        }
        if kl is not None:
            figures["reverse_kl"] = kl
        figures["problems"] = [
            {"id": self.prompts.prompts[i].id, "correct": good, "text": text, "tokens": length, "finish_reason": finish}
            for i, good, text, length, finish in graded
        ]
        return figures


def make_evaluator(session: Session, prompts: EncodedPrompts) -> Evaluator:
    """An evaluator with its jitted programs; checks that the batch fits the mesh."""
    section = session.config.eval
    check_batch(session.mesh, section.batch_size, "eval.batch_size")
    config = dataclasses.replace(
        session.rollout,
        monitored=False,
        read_after=True,
        targets="hidden",
        targets_dtype=None,
        temperature=section.temperature,
        top_k=0,
        top_p=section.top_p,
        max_new_tokens=section.max_new_tokens or session.config.rollout.max_new_tokens,
    )

    def generate(*arguments):  # a function of its own: jit counts the compilations of each function
        return rollout(*arguments)

    measure = jax.jit(_divergence, static_argnames="vocab_size") if section.reverse_kl else None
    return Evaluator(session, prompts, config, jax.jit(generate), measure)


def _divergence(student: Model, teacher: Model, trajectory, real, *, vocab_size: int):
    """Sum over the real rows' tokens of KL(student || teacher) in nats, and the number of tokens."""
    objective = Objective(student=TokenLoss("reverse_kl"), vocab_size=vocab_size)
    batch = build_targets(trajectory, target="spliced", transition=jnp.zeros((0,), jnp.int32))
    batch = dataclasses.replace(batch, kinds=jnp.where(real[:, None], batch.kinds, 0))
    weight = weights_of(batch.kinds, objective)
    _, sums = batch_loss(student.params, student.config, teacher, batch, weight, objective)
    return jnp.sum(sums), jnp.sum(batch.kinds > 0)


def work(words: list[str]) -> int:
    """The verb: read, load, generate, grade, print."""
    path, overrides, own = split_words(words, own=("output",))
    config = read_config(path, overrides)
    enable_compilation_cache()
    session = open_session(config, teacher=config.eval.reverse_kl)
    prompts = held_out_prompts(session)
    if prompts is None:
        raise UserError(f"data.source={config.data.source} has no held-out split; set eval.source (and eval.path)")
    evaluator = make_evaluator(session, prompts)
    with open_output(own["output"]) if "output" in own else contextlib.nullcontext() as output:
        figures = evaluator(
            session.serve(session.student.params), lambda done, total: print(f"{done}/{total}", file=sys.stderr)
        )
        problems = figures.pop("problems")
        if output is not None:
            output.writelines(json.dumps(problem, ensure_ascii=False) + "\n" for problem in problems)
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    run_verb(__doc__, work, own=("output",))
