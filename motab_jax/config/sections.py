"""The sections of the configuration: every key with its type, its range and its default.

The defaults are the paper's setting (MOTAB, arXiv 2605.19433) wherever the paper states one.
Left out: anything that needs the models or the data to be checked; the builders do that before work starts.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from motab_jax.config.base import Dtype, Natural, NonNegative, Positive, Section, Share, TopP
from motab_jax.config.locations import Location
from motab_jax.config.methods import METHODS
from motab_jax.config.prompts import DataSection, EvalSection


class RunSection(Section):
    """The run: its folder, its length, what it keeps."""

    name: str = "quickstart"
    dir: Location = Field(default="runs", description="folder of runs; the run folder is dir/name")
    steps: Positive = 100
    epochs: Positive | None = Field(
        default=None, description="passes over the prompts, in place of steps: rounded up to whole steps"
    )
    seed: Natural = 0
    start_seconds: Positive = Field(default=300, description="that processes wait for each other at the start")
    heartbeat_seconds: Positive = Field(default=40, description="of silence after which a process counts as dead")
    eval_every: Natural = Field(default=0, description="evaluate every n steps (0: before and after only)")
    save_every: Positive = 50
    upload_every: Positive = Field(
        default=60, description="seconds between uploads of the logs, where run.dir or output= is on a bucket"
    )
    keep: Positive = Field(default=2, description="checkpoints kept")
    sample_every: Natural = Field(default=10, description="write sample trajectories every n steps (0: never)")
    max_skipped: Positive = Field(default=5, description="stop after so many skipped (non-finite) updates in a row")
    matmul_precision: Literal["default", "high", "highest"] = Field(
        default="highest",
        description="of float32 matrices' products, on TPUs and GPUs",
    )
    deterministic: bool = Field(default=False, description="on GPUs: the same bits each time, and no autotuning")


class StudentSection(Section):
    """The student: a Hugging Face folder or hub id, or some of the teacher's layers."""

    path: Location | None = None
    dtype: Dtype = "float32"
    init_from_teacher: dict[Literal["layers"], list[Natural]] | None = None


class TeacherSection(Section):
    """The frozen teacher."""

    path: Location | None = None
    dtype: Dtype = "float32"
    quantize: Literal["int8"] | None = Field(default=None, description="int8: weights only, one scale per channel")


class RolloutSection(Section):
    """Generation by both models."""

    on_policy: Share = Field(default=1.0, description="share of the updates on the student's own completions")
    off_policy: Literal["data", "teacher"] = Field(
        default="data", description="what the other updates train on: the data's completions, or the teacher's"
    )
    batch_size: Positive = Field(default=32, description="trajectories per update")
    samples_per_prompt: Positive = 1
    max_new_tokens: Positive = 128
    segment_tokens: Positive = Field(default=16, description="tokens per segment; changes speed, never the result")
    slots: Natural = Field(default=0, description="trajectories decoded at a time; 0: the whole batch")
    serve_dtype: Dtype | None = Field(default=None, description="the student's weights and cache in rollouts")
    scan_layers: bool | None = Field(default=None, description="empty: unrolled on CPUs, scanned elsewhere")
    targets: Literal["hidden", "topk", "sampled"] = Field(
        default="hidden", description="what is kept of the teacher's distributions for the loss"
    )
    targets_k: Positive = Field(default=64, description="likeliest tokens kept (targets=topk)")
    targets_dtype: Dtype | None = Field(default=None, description="empty: the teacher's; with targets=topk float32")
    temperature: NonNegative = 0.6
    top_k: Natural = Field(default=0, description="0: off")
    top_p: TopP = 0.95


class MonitorSection(Section):
    """The safety boundary: eps_k = eps0 * exp(-theta * H_k) (arXiv 2605.19433, eq. 5-7)."""

    enabled: bool = True
    signal: Literal[
        "likelihood", "likelihood_ratio", "top_k", "reverse_kl", "forward_kl", "teacher_entropy", "student_entropy"
    ] = Field(default="likelihood", description="what is averaged over a step's tokens")
    alarm: Literal["low", "high"] | None = Field(
        default=None,
        description="the side on which a step strays; empty: high for divergences and entropies",
    )
    boundary: Literal["entropy_adaptive", "fixed", "running_mean", "quantile"] = Field(
        default="entropy_adaptive", description="running_mean: eps0 times the mean of the completion's earlier steps"
    )
    eps0: NonNegative = 0.2
    theta: NonNegative = 1.0
    rate: Share = Field(default=0.1, description="boundary=quantile: share of the steps that are to stray")
    pace: Share = Field(default=0.2, description="boundary=quantile: weight of the newest batch")
    patience: Positive = Field(default=1, description="strays in a row that make a breach")
    top_k: Positive = Field(default=25, description="signal=top_k: the teacher's likeliest tokens")
    entropy_top_k: Natural = Field(default=0, description="0: entropy of the full vocabulary; 20: as released")
    first_token_certain: bool = Field(
        default=False, description="as released: a step's first token counts as probability 1"
    )
    step_delimiter: Annotated[str, Field(min_length=1)] = ".\n\n"
    step_tokens: Natural = Field(default=0, description="tokens of every step; 0: steps end at the delimiter")


class BacktrackSection(Section):
    """Where a trajectory rewinds to and how long the teacher generates (arXiv 2605.19433, eq. 8-10)."""

    target: Literal["root", "breach"] = "root"
    intervention: Literal["suffix", "steps", "stop"] = Field(
        default="suffix",
        description="suffix: the teacher generates to the end; stop: the completion ends",
    )
    steps: Positive = Field(default=1, description="the teacher's steps before the hand-back (intervention=steps)")
    max_interventions: Natural = 1
    max_discarded_tokens: Natural | None = Field(
        default=None, description="limit of discarded tokens per completion; empty: four times rollout.max_new_tokens"
    )
    teacher_batch: Natural = Field(default=0, description="waiting rows that start the teacher; 0: as many as slots")
    teacher_rows: Natural | None = Field(
        default=None, description="slots that the teacher decodes at a time; 0: all; empty: a quarter of them on CPUs"
    )

    @model_validator(mode="after")
    def _suffix_happens_once(self):
        if self.intervention == "suffix" and self.max_interventions > 1:
            raise ValueError("intervention=suffix generates to the end, so max_interventions is 0 or 1")
        return self


class LossSection(Section):
    """The loss of one kind of token. A bare name in YAML means weight 1; `masked` means weight 0."""

    name: Literal[
        "cross_entropy", "forward_kl", "reverse_kl", "jsd", "adaptive_kl", "entropy_gated_kl", "policy_gradient",
        "minillm", "masked",
    ] = "cross_entropy"  # fmt: skip
    weight: NonNegative = 1.0
    reverse_weight: Share = Field(default=0.5, description="jsd only: 0 leans to forward_kl, 1 to reverse_kl")
    gate: NonNegative = Field(
        default=0.8, description="entropy_gated_kl only: forward KL from this entropy on, in nats"
    )


def _loss(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


Loss = Annotated[LossSection, BeforeValidator(_loss)]


class ObjectiveSection(Section):
    """The training target (arXiv 2605.19433, eq. 11) and the loss of each kind of token."""

    target: Literal["stitched", "spliced"] = "stitched"
    student_loss: Loss = LossSection()
    teacher_loss: Loss = LossSection()
    flawed_loss: Loss = LossSection()
    transition_loss: Loss = LossSection()
    transition_text: str = "However,"
    temperature: Annotated[float, Field(gt=0.0)] = 1.0
    normalize: Literal["token", "sequence"] = "token"

    @model_validator(mode="after")
    def _transition_has_no_teacher(self):
        if self.transition_loss.name not in ("cross_entropy", "masked"):
            raise ValueError("transition_loss is cross_entropy or masked: the teacher never scored the transition text")
        return self

    @model_validator(mode="after")
    def _the_students_own_samples(self):
        if self.teacher_loss.name in ("policy_gradient", "minillm"):
            raise ValueError(
                f"teacher_loss={self.teacher_loss.name} is a policy gradient of the student's own samples, which the "
                "teacher's tokens are not; use it as student_loss or flawed_loss"
            )
        return self


class OptimizerSection(Section):
    """AdamW with a linear warm-up; `schedule` is what follows it."""

    learning_rate: Annotated[float, Field(gt=0.0)] = 1e-5
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: Share = 0.05
    min_learning_rate: NonNegative = 0.0
    weight_decay: NonNegative = 0.0
    beta1: Share = 0.9
    beta2: Share = 0.95
    clip: NonNegative = Field(default=1.0, description="global gradient norm; 0: off")
    accumulate: Positive = 1
    compute_dtype: Dtype | None = Field(
        default=None, description="of weights and activations in the forward and backward pass; empty: the student's"
    )
    remat: Literal["none", "dots", "full"] | None = Field(
        default=None, description="what the backward pass recomputes; empty: full on CPUs, none elsewhere"
    )


class MeshSection(Section):
    """Devices along each mesh axis; one of them may be -1 (the rest)."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    dcn_data: Positive = Field(
        default=1, description="slices (without TPUs: processes); only the axis data spans several; divides mesh.data"
    )


class LogSection(Section):
    """The trackers that get the metrics besides metrics.jsonl."""

    tensorboard: bool = False
    wandb: bool = False
    trackio: bool = False


class Config(Section):
    """The whole run. Every verb reads this one tree."""

    method: str = Field(default="motab", description="sets defaults of other keys: " + ", ".join(METHODS))
    run: RunSection = RunSection()
    student: StudentSection = StudentSection()
    teacher: TeacherSection = TeacherSection()
    data: DataSection = DataSection()
    rollout: RolloutSection = RolloutSection()
    monitor: MonitorSection = MonitorSection()
    backtrack: BacktrackSection = BacktrackSection()
    objective: ObjectiveSection = ObjectiveSection()
    optimizer: OptimizerSection = OptimizerSection()
    mesh: MeshSection = MeshSection()
    eval: EvalSection = EvalSection()
    log: LogSection = LogSection()

    @field_validator("method")
    @classmethod
    def _method_is_known(cls, name: str) -> str:
        if name not in METHODS:
            raise ValueError(f"no such method; there are {', '.join(METHODS)}")
        return name

    @model_validator(mode="after")
    def _shapes_agree(self):
        rollout = self.rollout
        if rollout.batch_size % rollout.samples_per_prompt:
            raise ValueError(
                f"rollout.batch_size={rollout.batch_size} is not a multiple of "
                f"rollout.samples_per_prompt={rollout.samples_per_prompt}"
            )
        if rollout.batch_size % self.optimizer.accumulate:
            raise ValueError(
                f"rollout.batch_size={rollout.batch_size} is not a multiple of "
                f"optimizer.accumulate={self.optimizer.accumulate}"
            )
        return self

    @model_validator(mode="after")
    def _a_given_completion_is_one_sample(self):
        rollout = self.rollout
        if rollout.on_policy == 0 and rollout.off_policy == "data" and rollout.samples_per_prompt > 1:
            raise ValueError(
                f"rollout.samples_per_prompt={rollout.samples_per_prompt} with rollout.on_policy=0 and "
                "rollout.off_policy=data trains as often on the same completion in one step; set it to 1"
            )
        return self
