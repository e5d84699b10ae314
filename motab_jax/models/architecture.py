"""The architecture in a Hugging Face `config.json`: one frozen description for Llama, Qwen2 and Qwen3 decoders.

Anything that the forward pass does not implement is refused here by name, never approximated.
Left out: weights and their names (hf/weight_names.py) and the mathematics (transformer.py).
"""

import dataclasses
from typing import Any

from motab_jax.config import UserError

MODEL_TYPES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
ROPE_FIELDS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor",),
}
YARN_OPTIONAL = ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate")


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary embedding: `kind` is default, linear, llama3 or yarn; `fields` has that kind's settings, sorted."""

    theta: float = 10000.0
    kind: str = "default"
    fields: tuple[tuple[str, Any], ...] = ()

    def get(self, name: str, default: Any = None) -> Any:
        """The field `name`, or `default` where the config leaves it out."""
        return dict(self.fields).get(name, default)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder's architecture. Hashable, so that jitted programs take it as a static argument."""

    model_type: str
    vocab_size: int
    width: int
    mlp_width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    rope: Rope = Rope()
    rms_eps: float = 1e-6
    tied: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    qk_norm: bool = False

    def __post_init__(self):
        if self.num_heads % self.num_kv_heads:
            raise UserError(f"{self.num_heads} attention heads do not divide into {self.num_kv_heads} key-value heads")
        if self.head_dim % 2:
            raise UserError(f"head_dim {self.head_dim} is odd; rotary embeddings need an even one")

    @property
    def heads(self) -> tuple[int, int]:
        """Attention heads, and key-value heads."""
        return self.num_heads, self.num_kv_heads

    @classmethod
    def from_hf(cls, raw: dict[str, Any], where: str = "config.json") -> "ModelConfig":
        """Read a Hugging Face config; raises UserError naming an architecture or feature that is not implemented."""
        kind = raw.get("model_type")
        if kind not in MODEL_TYPES:
            raise UserError(f"{where}: model_type '{kind}' is not implemented; implemented: {', '.join(MODEL_TYPES)}")
        _refuse(raw, where)
        try:
            return cls(
                model_type=kind,
                vocab_size=raw["vocab_size"],
                width=raw["hidden_size"],
                mlp_width=raw["intermediate_size"],
                num_layers=raw["num_hidden_layers"],
                num_heads=raw["num_attention_heads"],
                num_kv_heads=raw.get("num_key_value_heads") or raw["num_attention_heads"],
                head_dim=raw.get("head_dim")
                or (128 if kind == "qwen3" else raw["hidden_size"] // raw["num_attention_heads"]),
                max_positions=raw.get("max_position_embeddings", 2048 if kind == "llama" else 32768),
                rope=_read_rope(raw, where),
                rms_eps=raw.get("rms_norm_eps", 1e-6),
                tied=bool(raw.get("tie_word_embeddings", False)),
                qkv_bias=kind == "qwen2" or bool(raw.get("attention_bias", False)),
                o_bias=kind != "qwen2" and bool(raw.get("attention_bias", False)),
                qk_norm=kind == "qwen3",
            )
        except KeyError as error:
            raise UserError(f"{where}: the key {error} is missing") from None

    def to_hf(self) -> dict[str, Any]:
        """The Hugging Face config of this architecture; `from_hf` reads it back to an equal one."""
        rope = {"rope_theta": self.rope.theta, "rope_type": self.rope.kind, **dict(self.rope.fields)}
        raw = {
            "architectures": [MODEL_TYPES[self.model_type]],
            "model_type": self.model_type,
            "vocab_size": self.vocab_size,
            "hidden_size": self.width,
            "intermediate_size": self.mlp_width,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": self.max_positions,
            "rms_norm_eps": self.rms_eps,
            "tie_word_embeddings": self.tied,
            "hidden_act": "silu",
            "rope_theta": self.rope.theta,
            "rope_scaling": None if self.rope.kind == "default" else rope,
            "rope_parameters": rope,
        }
        if self.model_type != "qwen2":
            raw["attention_bias"] = self.qkv_bias
        return raw


def _refuse(raw: dict[str, Any], where: str) -> None:
    if raw.get("use_sliding_window") or "sliding_attention" in (raw.get("layer_types") or ()):
        raise UserError(f"{where}: sliding-window attention is not implemented")
    if raw.get("mlp_bias"):
        raise UserError(f"{where}: mlp_bias is not implemented")
    if raw.get("hidden_act", "silu") != "silu":
        raise UserError(f"{where}: hidden_act '{raw['hidden_act']}' is not implemented; implemented: silu")
    if raw.get("quantization_config"):
        raise UserError(f"{where}: quantized weights are not implemented; load an unquantized checkpoint")
    if raw.get("partial_rotary_factor", 1.0) != 1.0:
        raise UserError(f"{where}: partial_rotary_factor is not implemented")


def _read_rope(raw: dict[str, Any], where: str) -> Rope:
    """Old configs say `rope_theta` and `rope_scaling`, new ones `rope_parameters`; both are read."""
    scaling = dict(raw.get("rope_parameters") or raw.get("rope_scaling") or {})
    theta = float(scaling.pop("rope_theta", None) or raw.get("rope_theta") or 10000.0)
    kind = scaling.pop("rope_type", None) or scaling.pop("type", None) or "default"
    scaling.pop("type", None)
    if kind not in ROPE_FIELDS:
        raise UserError(f"{where}: rope scaling '{kind}' is not implemented; implemented: {', '.join(ROPE_FIELDS)}")
    missing = [name for name in ROPE_FIELDS[kind] if scaling.get(name) is None]
    if missing:
        raise UserError(f"{where}: rope scaling '{kind}' lacks {', '.join(missing)}")
    if kind == "yarn":
        scaling.setdefault("original_max_position_embeddings", raw.get("max_position_embeddings"))
    known = (*ROPE_FIELDS[kind], *((*YARN_OPTIONAL, "original_max_position_embeddings") if kind == "yarn" else ()))
    unknown = sorted(set(scaling) - {*known, "original_max_position_embeddings", "partial_rotary_factor"})
    if unknown and kind != "default":
        raise UserError(f"{where}: rope scaling '{kind}' has fields that are not implemented: {', '.join(unknown)}")
    return Rope(theta, kind, tuple(sorted((name, scaling[name]) for name in known if scaling.get(name) is not None)))
