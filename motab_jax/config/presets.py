"""The presets: what `data.preset: NAME` and `eval.preset: NAME` set, as a sparse section under the user's own keys.

Each names a public data set by its hub id, the fields that are read and, for a benchmark, how it is usually sampled.
Left out: anything about the model; the user sets limits of tokens.
"""

from typing import Any

BOXED = "Please reason step by step, and put your final answer within \\boxed{}."
LETTER = "Please reason step by step, and put the letter of the right choice within \\boxed{}."

# As the paper samples: temperature 0.6, top-p 0.95, 8 samples where a benchmark is small.
SAMPLED: dict[str, Any] = {"temperature": 0.6, "top_p": 0.95}

DATA: dict[str, dict[str, Any]] = {
    "limo_v2": {
        "source": "hub:GAIR/LIMO-v2",
        "fields": {"prompt": "question", "answer": "answer", "completion": "solution"},
        "instruction": BOXED,
    },
    "acereason_math": {
        "source": "hub:nvidia/AceReason-Math",
        "fields": {"prompt": "problem", "answer": "answer"},
        "instruction": BOXED,
    },
    "deepmath": {
        "source": "hub:zwhe99/DeepMath-103K",
        "fields": {"prompt": "question", "answer": "final_answer"},
        "instruction": BOXED,
    },
    "gsm8k": {
        "source": "hub:openai/gsm8k",
        "path": "main",
        "fields": {"prompt": "question", "answer": "answer"},
        "answer_part": "after_hashes",
        "instruction": BOXED,
    },
    "math": {
        "source": "hub:DigitalLearningGmbH/MATH-lighteval",
        "fields": {"prompt": "problem", "answer": "solution"},
        "answer_part": "boxed",
        "instruction": BOXED,
    },
}

EVAL: dict[str, dict[str, Any]] = {
    "aime24": {
        "source": "hub:HuggingFaceH4/aime_2024",
        "split": "train",
        "fields": {"prompt": "problem", "answer": "answer", "id": "id"},
        "instruction": BOXED,
        "prompts": 30,
        "samples": 8,
        **SAMPLED,
    },
    "aime25": {
        "source": "hub:math-ai/aime25",
        "split": "test",
        "fields": {"prompt": "problem", "answer": "answer", "id": "id"},
        "instruction": BOXED,
        "prompts": 30,
        "samples": 8,
        **SAMPLED,
    },
    "amc23": {
        "source": "hub:math-ai/amc23",
        "split": "test",
        "fields": {"prompt": "question", "answer": "answer", "id": "id"},
        "instruction": BOXED,
        "prompts": 40,
        "samples": 8,
        **SAMPLED,
    },
    "math500": {
        "source": "hub:HuggingFaceH4/MATH-500",
        "split": "test",
        "fields": {"prompt": "problem", "answer": "answer", "id": "unique_id"},
        "instruction": BOXED,
        "prompts": 500,
        "samples": 1,
        **SAMPLED,
    },
    "gpqa_diamond": {
        "source": "hub:Idavidrein/gpqa",
        "path": "gpqa_diamond",
        "split": "train",
        "fields": {"prompt": "Question", "answer": "Correct Answer", "id": "Record ID"},
        "wrong_answers": ["Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3"],
        "grader": "choice",
        "instruction": LETTER,
        "prompts": 198,
        "samples": 1,
        **SAMPLED,
    },
    "gsm8k": {
        "source": "hub:openai/gsm8k",
        "path": "main",
        "split": "test",
        "fields": {"prompt": "question", "answer": "answer"},
        "answer_part": "after_hashes",
        "instruction": BOXED,
        "prompts": 1319,
        "samples": 1,
        **SAMPLED,
    },
}

PRESETS = {"data": DATA, "eval": EVAL}
