"""The keys of a Hugging Face `config.json` that decide what a model computes: typed, and refused where not implemented.

The rules are those of transformers 5: a filled `rope_scaling` wins over `rope_parameters`, a top-level
`original_max_position_embeddings` over the one inside, and `layer_types` over `use_sliding_window`. A value that
transformers refuses, or that the forward pass does not implement, is a UserError that names file and key.
Left out: keys that change nothing here, such as dropout and initialisation.
"""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from motab_jax.config import UserError

FAMILIES = ("llama", "qwen2", "qwen3")
SHOWN = 3  # problems in an error message
# What each kind of rope scaling needs, and what it reads where it is there.
ROPE_NEEDS = {"default": (), "linear": ("factor",), "llama3": ("factor", "low_freq_factor", "high_freq_factor")}
ROPE_NEEDS["yarn"] = ()
ROPE_READS = {"default": (), "linear": (), "llama3": ("original_max_position_embeddings",)}
ROPE_READS["yarn"] = (
    *("factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    "original_max_position_embeddings",
)

Size = Annotated[int, Field(ge=1, le=2**20)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Above = Annotated[float, Field(gt=0.0)]


def _no_truth(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("should be a number")
    return value


Theta = Annotated[float, BeforeValidator(_no_truth), Field(gt=0.0, strict=False)]  # some files quote it


class _Keys(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)


class RopeKeys(_Keys):
    """`rope_parameters`, or `rope_scaling`: null counts as absent, and what its kind does not read is ignored."""

    model_config = ConfigDict(extra="allow")

    rope_type: str | None = None
    type: str | None = None
    rope_theta: Theta | None = None
    partial_rotary_factor: float | None = None
    factor: Above | None = None
    low_freq_factor: Above | None = None
    high_freq_factor: Above | None = None
    original_max_position_embeddings: Count | None = None
    attention_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    @property
    def kind(self) -> str:
        """The kind of scaling, under its new or its old name."""
        return self.rope_type or self.type or "default"


class ConfigKeys(_Keys):
    """The keys of a config.json; the defaults are transformers'."""

    model_type: str
    vocab_size: Count
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Annotated[int, Field(ge=1, le=100_000)]
    num_attention_heads: Size
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    max_position_embeddings: Count | None = None
    original_max_position_embeddings: Count | None = None
    rms_norm_eps: Annotated[float, Field(ge=0.0)] = 1e-6
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    use_cache: bool = True
    hidden_act: str = "silu"
    rope_theta: Theta | None = None
    partial_rotary_factor: float | None = None
    rope_scaling: RopeKeys | None = None
    rope_parameters: RopeKeys | None = None
    layer_types: list[str] | None = None
    use_sliding_window: bool = False
    sliding_window: int | None = 4096
    max_window_layers: int = 28
    quantization_config: dict[str, Any] | None = None

    @property
    def rope(self) -> RopeKeys:
        """What says the rotary embedding. A rope_scaling that says anything wins, even beside rope_parameters."""
        scaling = self.rope_scaling
        return scaling if scaling is not None and scaling.model_fields_set else self.rope_parameters or RopeKeys()

    @property
    def theta(self) -> float:
        """The base of the rotary embedding: of the object that counts, else of the top level."""
        return self.rope.rope_theta or self.rope_theta or 10000.0


def read_keys(raw: dict[str, Any], where: str) -> ConfigKeys:
    """The keys of a config.json, checked.

    Args:
      raw: the file's content.
      where: what messages call the file.

    Raises:
      UserError: a key is missing or of the wrong type, or says something that is not implemented.
    """
    kind = raw.get("model_type")
    if kind not in FAMILIES:
        raise UserError(f"{where}: model_type {_shown(kind)} is not implemented; implemented: {', '.join(FAMILIES)}")
    for name in ("rope_scaling", "rope_parameters"):
        _refuse_nested(name, raw.get(name), where)
    nulls = [key for key in ("rope_theta", "max_position_embeddings") if key in raw and raw[key] is None]
    if kind == "qwen3" and raw.get("head_dim", 1) is None:
        nulls.append("head_dim")
    if nulls:
        raise UserError(f"{where}: {nulls[0]} is null; give its value or remove the key")
    try:
        keys = ConfigKeys.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{where}: {_explain(error)}") from None
    _refuse(keys, where)
    _refuse_layers(keys, where)
    _refuse_rope(keys, where)
    return keys


def _explain(error: ValidationError) -> str:
    """The first problems in one line, each with its key."""
    problems = []
    for problem in error.errors(include_url=False):
        key = ".".join(map(str, problem["loc"]))
        missing = problem["type"] == "missing"
        reason = problem["msg"].removeprefix("Input ").removeprefix("Value error, ")
        problems.append(f"the key '{key}' is missing" if missing else f"{key} = {_shown(problem['input'])} {reason}")
    more = f" and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    return "; ".join(problems[:SHOWN]) + more


def _shown(value: Any) -> str:
    """A value of the file, on one line of bounded length, as JSON calls it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    text = f"{value:.6g}" if isinstance(value, float) else repr(value) if isinstance(value, str) else "a number"
    if isinstance(value, int) and abs(value) < 10**18:
        text = str(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _refuse_nested(name: str, rope: Any, where: str) -> None:
    inner = [key for key, value in rope.items() if isinstance(value, dict)] if isinstance(rope, dict) else []
    if inner:
        raise UserError(f"{where}: {name}.{inner[0]}: rotary embeddings that differ by layer are not implemented")


def _refuse(keys: ConfigKeys, where: str) -> None:
    heads, groups = keys.num_attention_heads, keys.num_key_value_heads
    if groups and heads % groups:
        raise UserError(f"{where}: num_attention_heads = {heads} is not a multiple of num_key_value_heads = {groups}")
    if keys.hidden_size % heads and (keys.head_dim is None or keys.model_type == "llama"):
        raise UserError(f"{where}: hidden_size = {keys.hidden_size} is not a multiple of num_attention_heads = {heads}")
    if keys.mlp_bias:
        raise UserError(f"{where}: mlp_bias is not implemented")
    if keys.hidden_act != "silu":
        raise UserError(f"{where}: hidden_act {_shown(keys.hidden_act)} is not implemented; implemented: silu")
    if keys.quantization_config:
        raise UserError(f"{where}: quantized weights are not implemented; load an unquantized checkpoint")


def _refuse_layers(keys: ConfigKeys, where: str) -> None:
    layers = keys.num_hidden_layers
    if keys.layer_types is not None:
        if len(keys.layer_types) != layers:
            raise UserError(
                f"{where}: layer_types has {len(keys.layer_types)} entries, num_hidden_layers is {layers}; "
                "make them agree"
            )
        other = next((kind for kind in keys.layer_types if kind != "full_attention"), None)
        if other is not None:
            note = " (sliding-window attention)" if other == "sliding_attention" else ""
            raise UserError(
                f"{where}: layer_types has {_shown(other)}{note}, which is not implemented; implemented: full_attention"
            )
    elif (
        keys.use_sliding_window
        and keys.model_type != "llama"
        and keys.sliding_window is not None
        and keys.max_window_layers < layers
    ):
        raise UserError(
            f"{where}: sliding-window attention (use_sliding_window, from layer max_window_layers = "
            f"{keys.max_window_layers} on) is not implemented"
        )


def _refuse_rope(keys: ConfigKeys, where: str) -> None:
    rope, kind = keys.rope, keys.rope.kind
    for factor in (keys.partial_rotary_factor, rope.partial_rotary_factor):
        if factor not in (None, 1.0):
            raise UserError(f"{where}: partial_rotary_factor = {factor} is not implemented")
    if kind not in ROPE_NEEDS:
        names = ", ".join(ROPE_NEEDS)
        raise UserError(f"{where}: rope scaling {_shown(kind)} is not implemented; implemented: {names}")
    if missing := [name for name in ROPE_NEEDS[kind] if getattr(rope, name) is None]:
        raise UserError(f"{where}: rope scaling '{kind}' lacks {', '.join(missing)}")
    if kind != "default" and rope.model_extra:
        unknown = ", ".join(sorted(rope.model_extra))
        raise UserError(f"{where}: rope scaling '{kind}' has fields that are not implemented: {unknown}")
    if kind == "llama3" and (rope.high_freq_factor or 0) <= (rope.low_freq_factor or 0):
        raise UserError(f"{where}: rope scaling 'llama3' needs a high_freq_factor above its low_freq_factor")
    if kind == "yarn" and keys.theta <= 1.0:
        raise UserError(f"{where}: rope scaling 'yarn' needs a rope_theta above 1, it is {keys.theta}")
