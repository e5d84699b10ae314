"""A trajectory as a JSON record: what `synthesize` and `trajectories.jsonl` hold, one object a trajectory.

Positions count from the first completion token, steps from 0. The steps of a rewind are numbered as they stood when
it happened. Takes trajectories whose arrays are on the host. record.schema.json says the same as a JSON Schema.
"""

import itertools
from typing import Any

import numpy as np

from motab_jax.data.sources import Source
from motab_jax.rollout.monitor import NO_BOUNDARY
from motab_jax.rollout.trajectory import KEPT, FinishReason, Trajectory


class Row:
    """One row of a host trajectory, read as lists."""

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

    def alive(self, discarded_by: np.ndarray, rewind: int | None) -> np.ndarray:
        """Which entries stood when rewind number `rewind` happened (None: at the end)."""
        standing = discarded_by == KEPT
        return standing if rewind is None else standing | (discarded_by >= rewind)

    def describe_step(self, entry: int, rewind: int | None) -> dict[str, Any]:
        """A step table entry, with positions as they were when `rewind` happened (None: at the end)."""
        places = np.concatenate([[0], np.cumsum(self.alive(self.discarded_by, rewind))])
        step = {name: column[entry] for name, column in self.steps.items()}
        return {
            "start": int(places[step["start"]]),
            "end": int(places[step["end"]]),
            "source": Source(step["source"]).word,
            **{name: _number(step[name]) for name in ("value", "entropy", "boundary")},
            "stray": bool(step["stray"]),
        }

    def describe_rewind(self, number: int, decode) -> dict[str, Any]:
        """What rewind `number` discarded, where and why."""
        rewind = self.rewinds[number]
        standing = self.alive(self.steps["discarded_by"], number)
        index = np.concatenate([[0], np.cumsum(standing)])
        tokens = self.tokens[self.discarded_by == number].tolist()
        entries = np.flatnonzero(self.steps["discarded_by"] == number)
        return {
            "breach_step": int(index[rewind["breach_step"]]),
            "root_step": int(index[rewind["root_step"]]),
            "discarded_tokens": tokens,
            "discarded_text": decode(tokens),
            "discarded_steps": [self.describe_step(int(entry), number) for entry in entries],
        }

    def target_text(self, kind: str, transition: str, decode) -> str:
        """The training target as text: spliced, or stitched with the transition text at each rewind."""
        if kind == "spliced":
            return decode(self.tokens[self.discarded_by == KEPT].tolist())
        edges = [0, *(rewind["rewind_at"] for rewind in self.rewinds), len(self.tokens)]
        return transition.join(decode(self.tokens[a:b].tolist()) for a, b in itertools.pairwise(edges))


def _number(value: np.ndarray) -> float | None:
    """None where there is nothing to say: no number, or a boundary that nothing passes."""
    return float(value) if abs(value) < NO_BOUNDARY else None


def describe(trajectory: Trajectory, row: int, decode, *, target: str, transition: str) -> dict[str, Any]:
    """The part of a record that the trajectory knows; `decode` turns token ids into text."""
    found = Row(trajectory, row)
    kept = found.discarded_by == KEPT
    tokens = found.tokens[kept].tolist()
    return {
        "text": decode(tokens),
        "tokens": tokens,
        "sources": [Source(s).word for s in found.sources[kept]],
        "target_text": found.target_text(target, transition, decode),
        "steps": [
            found.describe_step(int(entry), None) for entry in np.flatnonzero(found.steps["discarded_by"] == KEPT)
        ],
        "rewinds": [found.describe_rewind(number, decode) for number in range(len(found.rewinds))],
        "finish_reason": found.finish,
    }
