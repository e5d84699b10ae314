"""The sections `data` and `eval`: where prompts come from, and how they are read and graded."""

import datetime
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from motab_jax.config.base import Natural, NonNegative, Positive, Section, TopP
from motab_jax.config.locations import Location
from motab_jax.config.presets import DATA, EVAL


def _preset_of(name: str, table: dict[str, Any]) -> str:
    if name not in table:
        raise ValueError(f"no such preset; there are {', '.join(table)}")
    return name


class PromptsSection(Section):
    """The keys that `data` and `eval` share: where prompts come from, how a record is read."""

    path: Location | None = None
    fields: dict[str, str] = Field(default_factory=dict, description="prompt/answer/id/completion -> field name")
    answer_part: Literal["whole", "after_hashes", "boxed"] = Field(
        default="whole", description="what part of its field the answer is: all, what follows ####, the last box"
    )
    wrong_answers: list[str] = Field(
        default_factory=list, description="fields of a multiple choice's wrong answers, which the prompt lists"
    )
    grader: Literal["math", "exact", "choice"] = Field(default="math", description="of records that don't name one")
    instruction: str | None = Field(default=None, description="a line at the end of every prompt")


class DataSection(PromptsSection):
    """Prompts: `arithmetic`, `pointers`, `jsonl`, `parquet`, `hub:<id>` or `reasoning_gym:<task>[,<task>...]`."""

    preset: str | None = Field(default=None, description="a known data set: " + ", ".join(DATA))
    source: str = "arithmetic"
    split: str = "train"
    count: Positive | None = Field(default=None, description="use only the first so many prompts")
    max_prompt_tokens: Positive = 64
    chat_template: bool = False
    template: Literal["student", "teacher"] | None = Field(
        default=None, description="whose chat template makes the prompts; empty: the student's, if it has one"
    )
    thinking: bool | None = Field(default=None, description="the chat template's enable_thinking; empty: its default")
    template_args: dict[str, Any] = Field(
        default_factory=dict,
        description="other variables of the chat template; strftime_now: YYYY-MM-DD is the date that it prints",
    )
    shuffle_seed: Natural = 0

    @field_validator("template_args")
    @classmethod
    def _date_is_one(cls, variables: dict[str, Any]) -> dict[str, Any]:
        if "strftime_now" in variables:
            try:
                datetime.date.fromisoformat(str(variables["strftime_now"]))
            except ValueError:
                raise ValueError("strftime_now is the date that the template prints, YYYY-MM-DD") from None
        return variables

    @field_validator("preset")
    @classmethod
    def _preset_is_known(cls, name: str | None) -> str | None:
        return None if name is None else _preset_of(name, DATA)


class EvalSection(PromptsSection):
    """Held-out evaluation. An empty source means the training source's held-out split."""

    preset: str | tuple[str, ...] | None = Field(
        default=None, description="a known benchmark, or several for `evaluate`: " + ", ".join(EVAL)
    )
    source: str | None = None
    split: str = "held_out"
    prompts: Positive = 500
    samples: Positive = 1
    batch_size: Positive | None = Field(
        default=None, description="completions generated at a time; empty: 128 on CPUs, else what the memory holds"
    )
    temperature: NonNegative = 0.0
    top_p: TopP = 1.0
    max_new_tokens: Positive | None = Field(default=None, description="empty: as rollout.max_new_tokens")
    reverse_kl: bool = Field(default=False, description="also report KL(student||teacher) on the student's completions")

    @field_validator("preset")
    @classmethod
    def _presets_are_known(cls, names: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        for name in [names] if isinstance(names, str) else names or []:
            _preset_of(name, EVAL)
        if isinstance(names, tuple) and len(set(names)) != max(1, len(names)):
            raise ValueError("a list of presets names each once, and at least one")
        return names

    @model_validator(mode="after")
    def _several_presets_describe_themselves(self):
        own = ("source", "path", "split", "fields", "answer_part", "wrong_answers", "grader")
        set_keys = [key for key in own if key in self.model_fields_set]
        if isinstance(self.preset, tuple) and set_keys:
            raise ValueError(f"each of several presets has its own {set_keys[0]}; leave eval.{set_keys[0]} out")
        return self

    def benchmarks(self) -> "list[EvalSection]":
        """A section for each benchmark: this one, or for each of several presets its own, under the user's keys."""
        if not isinstance(self.preset, tuple):
            return [self]
        written = self.model_dump(include=self.model_fields_set - {"preset"})
        kind = type(self)
        return [kind.model_validate({**EVAL[name], **written, "preset": name}) for name in self.preset]
