"""The inputs of a rollout: a batch of prompts, and how to sample, judge, backtrack and keep the teacher's targets."""

import dataclasses

import flax.struct
from jaxtyping import Array, Bool, Float32, Int32

from motab_jax.data.steps import StepAutomaton
from motab_jax.rollout.step_signals import EXPONENTIAL, NEEDS_STUDENT

UNLIMITED = 1 << 30  # more tokens or steps than any row has
FULL_REWINDS = 4  # completions of full length that a row may lose to rewinds, if max_discarded is None


class Prompts(flax.struct.PyTreeNode):
    """A batch of prompts."""

    tokens: Int32[Array, "N P"]  # left-padded
    lengths: Int32[Array, "N"]  # at least 1
    row_ids: Int32[Array, "N"]  # folded into the sampling keys, so that a row's result doesn't depend on its index
    limits: Int32[Array, "N"] | None = None  # new tokens a row may have (0: row left out); None: max_new_tokens


@dataclasses.dataclass(frozen=True)
class SamplingSpec:
    """How tokens are sampled; the filters act in the order temperature, top-k, top-p."""

    temperature: float = 0.6  # 0: greedy
    top_k: int = 0  # 0: all tokens
    top_p: float = 0.95


@dataclasses.dataclass(frozen=True)
class MonitorSpec:
    """How steps are judged; the defaults are the paper's."""

    enabled: bool = True
    signal: str = "likelihood"  # averaged over a step's tokens, see step_signals.py
    signal_top_k: int = 0  # of the signal top_k
    entropy_top_k: int = 0  # likeliest tokens in the entropy of the boundary; 0: the whole vocabulary
    alarm_is_high: bool = False  # a step strays above its boundary, not below
    running_mean: bool = False  # the boundary is eps0 times the mean value of the row's earlier student steps
    patience: int = 1  # stray steps in a row that make a breach
    first_token_certain: bool = False  # as released: a step's first token counts as if it had probability 1
    window: int = 0  # tokens of each step; 0: steps end at a delimiter

    @property
    def exponential(self) -> bool:
        """Whether a step's value is exp of its signal's mean, not the mean."""
        return self.signal in EXPONENTIAL

    def strays(self, value: Float32[Array, "..."], boundary: Float32[Array, "..."]) -> Bool[Array, "..."]:
        """Whether a value is on the wrong side of its boundary."""
        return value > boundary if self.alarm_is_high else value < boundary

    @property
    def needs_student(self) -> bool:
        """Whether the signal compares the teacher's distribution with the student's."""
        return self.signal in NEEDS_STUDENT


@dataclasses.dataclass(frozen=True)
class BacktrackSpec:
    """How a row backtracks after a breach."""

    target: str = "root"  # the first step that is discarded: root, or breach for the breaching step
    intervention: str = "suffix"  # the teacher generates to the end, or `steps`, or `stop`: the breach ends the row
    teacher_steps: int = 1  # of one intervention, with intervention `steps`
    max_interventions: int = 1
    max_discarded: int | None = None  # tokens that a row may lose to rewinds; None: see RolloutConfig.max_discarded
    teacher_batch: int = 0  # waiting rows that start the teacher; 0: as many as there are slots
    teacher_rows: int = 0  # slots that the teacher decodes at a time; 0: all


@dataclasses.dataclass(frozen=True)
class TargetSpec:
    """The form in which the teacher's distributions are kept."""

    kind: str = "hidden"  # or topk, or sampled
    k: int = 64  # likeliest tokens kept, with kind `topk`
    dtype: str | None = None  # None: the teacher's


def _static(default=dataclasses.MISSING):
    return flax.struct.field(pytree_node=False, default=default)


class RolloutConfig(flax.struct.PyTreeNode):
    """How a rollout samples, judges and backtracks. Arrays may change from call to call; other fields are static."""

    automaton: StepAutomaton  # of the step delimiter
    stop_ids: Int32[Array, "X"]
    eps0: Float32[Array, ""]
    theta: Float32[Array, ""]
    skip_teacher: Bool[Array, ""] | None = None  # no scoring, to time the rest (motab_jax/training/phase_times.py)
    vocab_size: int = _static(0)  # the tokenizer's; logits beyond it never count
    max_new_tokens: int = _static(128)
    segment_tokens: int = _static(16)
    slots: int = _static(0)  # rows that are decoded at a time; 0: all
    sampling: SamplingSpec = _static(SamplingSpec())
    monitor: MonitorSpec = _static(MonitorSpec())
    backtrack: BacktrackSpec = _static(BacktrackSpec())
    targets: TargetSpec = _static(TargetSpec())
    score_after: bool = _static(False)  # without a monitor: the teacher scores finished rows, in one pass

    @property
    def teacher_scores_after(self) -> bool:
        """Whether the teacher has no part in the loop and scores finished rows."""
        return self.score_after and not self.monitor.enabled

    @property
    def max_rewinds(self) -> int:
        """Rewinds that one trajectory can have at most: after each, the teacher generates at least one token."""
        limit = min(self.backtrack.max_interventions, self.max_new_tokens)
        return limit if self.monitor.enabled and self.backtrack.intervention != "stop" else 0

    @property
    def breach_ends_row(self) -> bool:
        """Whether a row ends at its first breach."""
        return self.monitor.enabled and self.backtrack.intervention == "stop"

    @property
    def max_discarded(self) -> int:
        """Tokens that the rewinds of one trajectory can discard at most; a step that would exceed it stays."""
        per_rewind = self.max_new_tokens
        if self.monitor.window and self.backtrack.target == "breach":
            per_rewind = min(per_rewind, self.monitor.window)
        configured = self.backtrack.max_discarded
        total = FULL_REWINDS * self.max_new_tokens if configured is None else configured
        return min(per_rewind * self.max_rewinds, total)

    @property
    def hands_back(self) -> bool:
        """Whether the student may have to go on after the teacher."""
        return self.max_rewinds > 0 and self.backtrack.intervention == "steps"

    @property
    def teacher_budget(self) -> int:
        """Steps that the teacher generates at an intervention."""
        return self.backtrack.teacher_steps if self.backtrack.intervention == "steps" else UNLIMITED

    @property
    def targets_k(self) -> int:
        """Likeliest tokens of the teacher that are kept."""
        return min(self.targets.k, self.vocab_size) if self.targets.kind == "topk" else 0
