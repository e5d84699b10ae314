"""What a rollout is given: the prompts, and the engine's numbers."""

import flax.struct
import jax

from motab_jax.data.steps import StepAutomaton
from motab_jax.rollout.decode import ENDLESS
from motab_jax.rollout.monitor import MonitorRules
from motab_jax.rollout.step_signals import EXPONENTIAL
from motab_jax.rollout.teacher_scores import ScoreSpec

FULL_REWINDS = 4  # whole texts that a row may lose to rewinds, where nothing else is said


@flax.struct.dataclass
class Prompts:
    """A batch of prompts; N rows, P columns."""

    tokens: jax.Array  # i32[N,P]; left-padded
    lengths: jax.Array  # i32[N]; at least 1
    row_ids: jax.Array  # i32[N]; what sampling keys fold, so a row's result doesn't depend on its place
    limits: jax.Array | None = None  # i32[N]; new tokens of each row at most (0: leave the row out); None: all the same


def _static(default=None):
    return flax.struct.field(pytree_node=False, default=default)


@flax.struct.dataclass
class RolloutConfig:
    """The engine's numbers. Array leaves may change from call to call; the rest is compiled in."""

    automaton: StepAutomaton  # of the step delimiter
    stop_ids: jax.Array  # i32[X]
    eps0: jax.Array  # f32[]
    theta: jax.Array  # f32[]
    skip_teacher: jax.Array | None = (
        None  # bool[]; the teacher reads nothing: only to time the rest (motab_jax/training/phase_times.py)
    )
    vocab_size: int = _static()  # the tokenizer's; logits beyond never count
    max_new_tokens: int = _static(128)
    segment_tokens: int = _static(16)
    slots: int = _static(0)  # rows that are decoded at a time; 0: all
    temperature: float = _static(0.6)
    top_k: int = _static(0)
    top_p: float = _static(0.95)
    monitored: bool = _static(True)
    entropy_top_k: int = _static(0)
    signal: str = _static("likelihood")  # see signal.py
    signal_top_k: int = _static(0)
    alarm_is_high: bool = _static(False)  # a step strays above its boundary, not below
    running_mean: bool = _static(False)  # the boundary is eps0 times the mean of the text's earlier steps
    patience: int = _static(1)  # stray steps in a row that make a breach
    first_token_certain: bool = _static(False)  # as released: a step's first token counts with probability 1
    window: int = _static(0)  # every step has so many tokens; 0: steps end at a delimiter
    target: str = _static("root")  # or breach
    intervention: str = _static("suffix")  # or steps, or stop
    steps: int = _static(1)
    max_interventions: int = _static(1)
    max_discarded: int | None = _static(None)  # tokens that a row may lose to rewinds; None: see most_discarded
    teacher_batch: int = _static(0)  # waiting rows that call the teacher; 0: as many as there are slots
    teacher_rows: int = _static(0)  # slots that the teacher writes in at a time; 0: all
    score_after: bool = _static(False)  # without a monitor: the teacher reads finished rows, in one pass
    targets: str = _static("hidden")  # what is kept of the teacher's distributions: hidden, topk or sampled
    targets_k: int = _static(64)  # likeliest tokens kept, for targets topk
    targets_dtype: str | None = _static(None)  # None: the teacher's

    @property
    def teacher_scores_after(self) -> bool:
        """Whether the teacher has no part in the loop and reads finished rows."""
        return self.score_after and not self.monitored

    @property
    def rewinds(self) -> int:
        """How often one trajectory can be rewound at most: each time the teacher writes a token at least."""
        most = min(self.max_interventions, self.max_new_tokens)
        return most if self.monitored and self.intervention != "stop" else 0

    @property
    def stops(self) -> bool:
        """Whether a breach ends the text."""
        return self.monitored and self.intervention == "stop"

    @property
    def most_discarded(self) -> int:
        """Tokens that the rewinds of one trajectory can discard at most; a step that would exceed it stays."""
        each = self.max_new_tokens
        if self.window and self.target == "breach":
            each = min(each, self.window)
        most = each * self.rewinds
        return min(most, FULL_REWINDS * self.max_new_tokens if self.max_discarded is None else self.max_discarded)

    @property
    def hands_back(self) -> bool:
        """Whether the student may have to go on after the teacher."""
        return self.rewinds > 0 and self.intervention == "steps"

    @property
    def teacher_budget(self) -> int:
        """Steps the teacher writes at an intervention."""
        return self.steps if self.intervention == "steps" else ENDLESS

    @property
    def score_spec(self) -> ScoreSpec:
        """What the teacher is asked about each token."""
        return ScoreSpec(self.entropy_top_k, self.kept_k, self.signal, self.signal_top_k)

    @property
    def rules(self) -> MonitorRules:
        """How steps are judged."""
        return MonitorRules(
            self.signal in EXPONENTIAL, self.alarm_is_high, self.running_mean, self.patience, self.first_token_certain,
            self.target == "root", None if self.stops else self.most_discarded,
        )  # fmt: skip

    @property
    def kept_k(self) -> int:
        """How many of the teacher's likeliest tokens are kept."""
        return min(self.targets_k, self.vocab_size) if self.targets == "topk" else 0
