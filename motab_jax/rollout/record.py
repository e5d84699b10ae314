"""A trajectory as a JSON record: what `synthesize` and `trajectories.jsonl` hold, one object a trajectory.

Positions count from the first completion token, steps from 0. The steps of a rewind are numbered as they stood when
it happened. record.schema.json says the same as a JSON Schema. Left out: the prompt and the grade
(motab_jax/synthesis/records.py).
"""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from motab_jax.data.sources import Source
from motab_jax.rollout.monitor import NO_BOUNDARY
from motab_jax.rollout.trajectory import KEPT, FinishReason, Trajectory

# Token ids -> text.
Decode = Callable[[list[int]], str]


class Row:
    """One row of a trajectory on the host, truncated to the entries in use."""

    def __init__(self, trajectory: Trajectory, row: int):
        size, count = int(trajectory.length[row]), int(trajectory.steps.count[row])
        self.tokens = np.asarray(trajectory.tokens[row, :size])
        self.sources = np.asarray(trajectory.sources[row, :size])
        self.discarded_by = np.asarray(trajectory.discarded_by[row, :size])
        self.steps = {
            name: np.asarray(getattr(trajectory.steps, name)[row, :count])
            for name in ("start", "end", "source", "value", "entropy", "boundary", "stray", "discarded_by")
        }
        self.rewinds = [
            {name: int(getattr(trajectory, name)[row, r]) for name in ("rewind_at", "breach_step", "root_step")}
            for r in range(int(trajectory.num_rewinds[row]))
        ]
        self.finish = FinishReason(int(trajectory.finish[row])).word

    @staticmethod
    def kept_at(discarded_by: Int[np.ndarray, "E"], rewind: int | None) -> Bool[np.ndarray, "E"]:
        """Which entries no rewind had discarded when rewind number `rewind` happened (None: at the end)."""
        kept = discarded_by == KEPT
        return kept if rewind is None else kept | (discarded_by >= rewind)

    def describe_step(self, entry: int, rewind: int | None) -> dict[str, Any]:
        """A step table entry, with positions as they were when `rewind` happened (None: at the end)."""
        position = np.concatenate([[0], np.cumsum(self.kept_at(self.discarded_by, rewind))])
        step = {name: column[entry] for name, column in self.steps.items()}
        return {
            "start": int(position[step["start"]]),
            "end": int(position[step["end"]]),
            "source": Source(step["source"]).word,
            **{name: _number(step[name]) for name in ("value", "entropy", "boundary")},
            "stray": bool(step["stray"]),
        }

    def describe_rewind(self, number: int, decode: Decode) -> dict[str, Any]:
        """What rewind `number` discarded, where and why."""
        rewind = self.rewinds[number]
        index = np.concatenate([[0], np.cumsum(self.kept_at(self.steps["discarded_by"], number))])
        tokens = self.tokens[self.discarded_by == number].tolist()
        entries = np.flatnonzero(self.steps["discarded_by"] == number)
        return {
            "breach_step": int(index[rewind["breach_step"]]),
            "root_step": int(index[rewind["root_step"]]),
            "discarded_tokens": tokens,
            "discarded_text": decode(tokens),
            "discarded_steps": [self.describe_step(int(entry), number) for entry in entries],
        }

    def target_text(self, kind: str, transition: str, decode: Decode) -> str:
        """The training target as text: spliced, or stitched with the transition text at each rewind."""
        if kind == "spliced":
            return decode(self.tokens[self.discarded_by == KEPT].tolist())
        edges = [0, *(rewind["rewind_at"] for rewind in self.rewinds), len(self.tokens)]
        return transition.join(decode(self.tokens[a:b].tolist()) for a, b in itertools.pairwise(edges))


def _number(value: np.floating) -> float | None:
    """A number for JSON; None for NaN and for a boundary that no step can cross."""
    return float(value) if abs(value) < NO_BOUNDARY else None


def describe(trajectory: Trajectory, row: int, decode: Decode, *, target: str, transition: str) -> dict[str, Any]:
    """The fields of a record that come from the trajectory.

    Args:
      trajectory: on the host.
      row: which of its rows.
      decode: token ids -> text.
      target: stitched or spliced, for `target_text`.
      transition: the text in front of each intervention of a stitched target.

    Returns:
      The fields text, tokens, sources, target_text, steps, rewinds and finish_reason, as JSON values.
    """
    host = Row(trajectory, row)
    kept = host.discarded_by == KEPT
    tokens = host.tokens[kept].tolist()
    kept_steps = np.flatnonzero(host.steps["discarded_by"] == KEPT)
    return {
        "text": decode(tokens),
        "tokens": tokens,
        "sources": [Source(s).word for s in host.sources[kept]],
        "target_text": host.target_text(target, transition, decode),
        "steps": [host.describe_step(int(entry), None) for entry in kept_steps],
        "rewinds": [host.describe_rewind(number, decode) for number in range(len(host.rewinds))],
        "finish_reason": host.finish,
    }
