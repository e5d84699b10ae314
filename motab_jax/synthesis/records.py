"""The record of a trajectory, as `synthesize` writes it and a run writes its samples."""

from typing import Any

from motab_jax.data.records import Prompt
from motab_jax.grading.grade import is_correct
from motab_jax.rollout import Trajectory
from motab_jax.rollout.record import describe
from motab_jax.session.session import Session


def make_record(
    session: Session, prompt: Prompt, tokens: list[int], sample: int, trajectory: Trajectory, row: int
) -> dict[str, Any]:
    """One trajectory as a record: a dictionary of what JSON can hold (docs/records.md).

    Args:
      session: gives the tokenizer, the target and the transition text.
      prompt: the trajectory's.
      tokens: the prompt's token ids.
      sample: the number of the trajectory among those of its prompt.
      trajectory: a batch of trajectories on the host.
      row: which of them.

    Returns:
      The record; `correct` is None where no answer is known.
    """
    objective = session.config.objective
    description = describe(
        trajectory, row, session.decode, target=objective.target, transition=objective.transition_text
    )
    correct = None
    if prompt.grader != "none":
        correct = is_correct(prompt, description["text"], opened_thought=session.opens_thought(tokens))
    return {
        "id": prompt.id,
        "sample": sample,
        "prompt": prompt.prompt,
        "prompt_tokens": list(tokens),
        **description,
        "correct": correct,
    }
