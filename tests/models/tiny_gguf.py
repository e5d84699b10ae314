"""Writes a tiny GGUF file: a random llama and a byte-level vocabulary with two merges, as SmolLM2's file has them."""

import gguf
import numpy as np

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
WIDTH, MLP, LAYERS, HEADS, KV_HEADS, HEAD_DIM = 64, 96, 2, 4, 2, 16


def byte_letters():
    """The 256 characters that stand for bytes in GPT-2's vocabularies, by byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    letters = {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(rest)}
    return [letters[byte] for byte in range(256)]


def vocabulary():
    """Tokens by id: special ones, bytes, and the merges' results."""
    return [*SPECIAL, *byte_letters(), "th", "in", "12"]


def write_gguf(path, *, arch="llama", pre="smollm", extra_tensor=None, leave_out=None, eps=1e-5):
    """Write the file; returns its tensors in float32, as they were before quantization, by GGUF name."""
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(5000.0)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_layer_norm_rms_eps(eps)
    writer.add_vocab_size(len(vocabulary()))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(vocabulary())
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(vocabulary()) - len(SPECIAL)))
    writer.add_token_merges(["t h", "i n", "1 2"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    tensors = {name: value for name, value in _tensors().items() if name != leave_out}
    for name, value in tensors.items() if extra_tensor is None else [*tensors.items(), (extra_tensor, np.ones(4, "f4"))]:
        if value.ndim == 2:  # Q8_0 in blocks of 32 along the input
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(value, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def _tensors():
    rng = np.random.default_rng(0)
    kv = KV_HEADS * HEAD_DIM
    block = {"attn_q": (WIDTH, WIDTH), "attn_k": (kv, WIDTH), "attn_v": (kv, WIDTH), "attn_output": (WIDTH, WIDTH)}
    block |= {"ffn_gate": (MLP, WIDTH), "ffn_up": (MLP, WIDTH), "ffn_down": (WIDTH, MLP)}
    block |= {"attn_norm": (WIDTH,), "ffn_norm": (WIDTH,)}
    shapes = {"token_embd.weight": (len(vocabulary()), WIDTH), "output_norm.weight": (WIDTH,)}
    shapes |= {f"blk.{layer}.{name}.weight": shape for layer in range(LAYERS) for name, shape in block.items()}
    return {
        name: (2.0 * rng.normal(size=s) / s[-1] ** 0.5 if len(s) == 2 else 1 + 0.3 * rng.normal(size=s)).astype("f4")
        for name, s in shapes.items()
    }
