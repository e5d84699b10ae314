"""What a rollout is given: the prompts, and the engine's numbers."""

import flax.struct
import jax

from motab_jax.data.steps import StepAutomaton
from motab_jax.rollout.decode import ENDLESS


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
    muted: jax.Array | None = None  # bool[]; the teacher reads nothing: only to time the rest (motab_jax/phases.py)
    vocab_size: int = _static()  # the tokenizer's; logits beyond never count
    max_new_tokens: int = _static(128)
    segment_tokens: int = _static(16)
    slots: int = _static(0)  # rows that are decoded at a time; 0: all
    temperature: float = _static(0.6)
    top_k: int = _static(0)
    top_p: float = _static(0.95)
    monitored: bool = _static(True)
    target: str = _static("root")  # or breach
    intervention: str = _static("suffix")  # or steps
    steps: int = _static(1)
    max_interventions: int = _static(1)
    teacher_batch: int = _static(0)  # waiting rows that call the teacher; 0: as many as there are slots
    teacher_rows: int = _static(0)  # slots that the teacher writes in at a time; 0: all
    entropy_top_k: int = _static(0)
    read_after: bool = _static(False)  # without a monitor: the teacher reads finished rows, in one pass
    targets: str = _static("hidden")  # what is kept of the teacher's distributions: hidden, topk or sampled
    targets_k: int = _static(64)
    targets_dtype: str | None = _static(None)  # None: the teacher's

    @property
    def teacher_is_out(self) -> bool:
        """Whether the teacher has no part in the loop and reads finished rows."""
        return self.read_after and not self.monitored

    @property
    def rewinds(self) -> int:
        """How often one trajectory can be rewound at most."""
        return self.max_interventions if self.monitored else 0

    @property
    def hands_back(self) -> bool:
        """Whether the student may have to go on after the teacher."""
        return self.rewinds > 0 and self.intervention == "steps"

    @property
    def teacher_budget(self) -> int:
        """Steps the teacher writes at an intervention."""
        return self.steps if self.intervention == "steps" else ENDLESS

    @property
    def kept_k(self) -> int:
        """How many of the teacher's likeliest tokens are kept."""
        return min(self.targets_k, self.vocab_size) if self.targets == "topk" else 0
