"""The architecture in a Hugging Face `config.json`: one frozen description for Llama, Qwen2 and Qwen3 decoders.

Anything that the forward pass does not implement is refused by name (config_file.py), never approximated.
Left out: weights and their names (hf/weight_names.py) and the mathematics (transformer.py).
"""

import dataclasses
from typing import Any

from motab_jax.config import UserError
from motab_jax.models.config_file import ROPE_NEEDS, ROPE_READS, ConfigKeys, read_keys

MODEL_TYPES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}


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
        keys = read_keys(raw, where)
        kind = keys.model_type
        try:
            return cls(
                model_type=kind,
                vocab_size=keys.vocab_size,
                width=keys.hidden_size,
                mlp_width=keys.intermediate_size,
                num_layers=keys.num_hidden_layers,
                num_heads=keys.num_attention_heads,
                num_kv_heads=keys.num_key_value_heads or keys.num_attention_heads,
                head_dim=keys.head_dim or (128 if kind == "qwen3" else keys.hidden_size // keys.num_attention_heads),
                max_positions=_max_positions(keys),
                rope=_read_rope(keys),
                rms_eps=keys.rms_norm_eps,
                tied=keys.tie_word_embeddings,
                qkv_bias=kind == "qwen2" or keys.attention_bias,
                o_bias=kind != "qwen2" and keys.attention_bias,
                qk_norm=kind == "qwen3",
            )
        except UserError as error:
            raise UserError(f"{where}: {error}") from None

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


def _max_positions(keys: ConfigKeys) -> int:
    """The positions that the model knows, or its family's default."""
    return keys.max_position_embeddings or (2048 if keys.model_type == "llama" else 32768)


def _read_rope(keys: ConfigKeys) -> Rope:
    """The rotary embedding with the fields that its kind uses."""
    rope, kind = keys.rope, keys.rope.kind
    names = {*ROPE_NEEDS[kind], *ROPE_READS[kind]}
    found = {name: getattr(rope, name) for name in names if name in rope.model_fields_set}
    if "original_max_position_embeddings" in names:
        original = (
            keys.original_max_position_embeddings or rope.original_max_position_embeddings or _max_positions(keys)
        )
        found["original_max_position_embeddings"] = original
        if kind == "yarn" and rope.factor is None:
            found["factor"] = _max_positions(keys) / original
    return Rope(keys.theta, kind, tuple(sorted((name, value) for name, value in found.items() if value is not None)))
