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


def write_gguf(path, *, arch="llama", pre="smollm", extra=(), leave_out=(), metadata=None):
    """Write the file. Returns what a Hugging Face folder should hold: name -> float32 values, quantization included.

    extra: names of vectors to add; leave_out: names of tensors to omit; metadata: more keys, with numbers.
    """
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(5000.0)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_layer_norm_rms_eps(1e-5)
    for key, value in (metadata or {}).items():
        writer.add_uint32(key, value)
    _add_tokenizer(writer, pre)
    expected = {}
    for name, hf_name, weight in _tensors():
        kind = gguf.GGMLQuantizationType.Q8_0 if weight.ndim == 2 else gguf.GGMLQuantizationType.F32
        expected[hf_name] = gguf.dequantize(gguf.quantize(weight, kind), kind).reshape(weight.shape)
        if name not in leave_out:
            writer.add_tensor(name, gguf.quantize(_permuted(name, weight), kind), raw_dtype=kind)
    for name in extra:
        writer.add_tensor(name, np.ones(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def _add_tokenizer(writer, pre):
    tokens = vocabulary()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)))
    writer.add_token_merges(["t h", "i n", "1 2"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)


def _permuted(name, weight):
    """GGUF's order of the rows of q and k: within a head, the two halves are interleaved."""
    heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(name.split(".")[-2])
    if heads is None:
        return weight
    rows = [
        head * HEAD_DIM + half * HEAD_DIM // 2 + i
        for head in range(heads)
        for i in range(HEAD_DIM // 2)
        for half in range(2)
    ]
    return np.ascontiguousarray(weight[rows])


def _tensors():
    """(GGUF name, Hugging Face name, values [out, in]) of a random model."""
    rng = np.random.default_rng(0)
    kv = KV_HEADS * HEAD_DIM
    block = [
        ("attn_q", "self_attn.q_proj", (WIDTH, WIDTH)),
        ("attn_k", "self_attn.k_proj", (kv, WIDTH)),
        ("attn_v", "self_attn.v_proj", (kv, WIDTH)),
        ("attn_output", "self_attn.o_proj", (WIDTH, WIDTH)),
        ("ffn_gate", "mlp.gate_proj", (MLP, WIDTH)),
        ("ffn_up", "mlp.up_proj", (MLP, WIDTH)),
        ("ffn_down", "mlp.down_proj", (WIDTH, MLP)),
        ("attn_norm", "input_layernorm", (WIDTH,)),
        ("ffn_norm", "post_attention_layernorm", (WIDTH,)),
    ]
    named = [("token_embd", "embed_tokens", (len(vocabulary()), WIDTH)), ("output_norm", "norm", (WIDTH,))]
    named += [
        (f"blk.{i}.{ours}", f"layers.{i}.{theirs}", shape) for i in range(LAYERS) for ours, theirs, shape in block
    ]
    for ours, theirs, shape in named:
        yield f"{ours}.weight", f"model.{theirs}.weight", rng.normal(size=shape).astype(np.float32)
