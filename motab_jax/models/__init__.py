"""Decoders in the Hugging Face families Llama, Qwen2 and Qwen3: one forward pass, and their files in and out."""

from motab_jax.models.architecture import ModelConfig
from motab_jax.models.hf.pretrained import load_pretrained, save_pretrained
from motab_jax.models.transformer import Model, forward

__all__ = ["Model", "ModelConfig", "forward", "load_pretrained", "save_pretrained"]
