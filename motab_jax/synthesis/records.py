"""The record of a trajectory: what `synthesize` and the samples of a run write, as JSON."""

from typing import Any

from motab_jax.data.records import Prompt
from motab_jax.grading.grade import is_correct
from motab_jax.rollout.record import describe
from motab_jax.session.session import Session


def make_record(
    session: Session, prompt: Prompt, tokens: list[int], sample: int, trajectory, row: int
) -> dict[str, Any]:
    """One trajectory as a JSON-able record; `correct` is null where no answer is known."""
    objective = session.config.objective
    found = describe(trajectory, row, session.decode, target=objective.target, transition=objective.transition_text)
    correct = None if prompt.grader == "none" else is_correct(prompt, found["text"])
    return {
        "id": prompt.id,
        "sample": sample,
        "prompt": prompt.prompt,
        "prompt_tokens": list(tokens),
        **found,
        "correct": correct,
    }
