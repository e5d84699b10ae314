"""Greedy texts of an exported folder by another program: run by the Python of that program's environment.

    python generate.py transformers|vllm FOLDER < prompts.json > texts.json

It imports nothing of motab_jax. The prompts are a JSON list; so are the texts, without special tokens.
"""

import json
import os
import sys
from typing import Any

NEW_TOKENS = 100


def with_transformers(folder: str, prompts: list[str]) -> list[str]:
    """transformers' own loading, stop tokens and generation, nothing told to it but that it is greedy."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    texts = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        full = model.generate(
            input_ids=ids, attention_mask=ids.new_ones(ids.shape), do_sample=False, max_new_tokens=NEW_TOKENS
        )
        texts.append(tokenizer.decode(full[0, ids.shape[1] :], skip_special_tokens=True))
    return texts


def with_vllm(folder: str, prompts: list[str]) -> list[str]:
    """The same by vLLM, on the CPU."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    from vllm import LLM, SamplingParams

    model = LLM(folder, dtype="float32", enforce_eager=True, max_model_len=256)
    outputs = model.generate(prompts, SamplingParams(temperature=0, max_tokens=NEW_TOKENS))
    return [output.outputs[0].text for output in outputs]


def main() -> None:
    """What both programs print goes to standard error."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    generate = {"transformers": with_transformers, "vllm": with_vllm}[sys.argv[1]]
    json.dump(generate(sys.argv[2], json.load(sys.stdin)), replies)
    replies.close()


if __name__ == "__main__":
    main()
