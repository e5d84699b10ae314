"""The rival of step.py: TRL's GKDTrainer, run in TRL's own environment by that environment's Python.

`python step_trl.py FOLDER` answers requests (bench.Worker): make the random pair, say what TRL's loss is on given
tokens, take one on-policy step. The steps are those of `trainer.train()`, which waits for its turn in a thread.
"""

import logging
import os
import sys
import threading
from pathlib import Path

import bench
import torch
import transformers
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM, TrainerCallback
from trl.experimental.gkd import GKDConfig, GKDTrainer


class StepGate(TrainerCallback):
    """Lets the trainer take one step at a time."""

    def __init__(self):
        self.allowed, self.done = threading.Semaphore(0), threading.Semaphore(0)

    def on_step_begin(self, *_, **__) -> None:
        """Wait until the step is allowed."""
        self.allowed.acquire()

    def on_step_end(self, *_, **__) -> None:
        """Tell the caller that the step is done."""
        self.done.release()


class Rival:
    """A pair in `folder` and, once it is loaded, the trainer over it."""

    def __init__(self, folder: Path):
        self.folder, self.gate, self.new_tokens = folder, StepGate(), 0

    def make(self, shapes: dict) -> None:
        """Write random Qwen3 models: name -> the arguments of their config."""
        for seed, (name, shape) in enumerate(shapes.items()):
            torch.manual_seed(seed)
            model = Qwen3ForCausalLM(Qwen3Config(**shape, eos_token_id=None, bos_token_id=None, pad_token_id=None))
            model.save_pretrained(self.folder / name)

    def load(self, prompts: list, new_tokens: int) -> int:
        """Load the pair; prompts [B,P] are those of every step. Returns torch's threads."""
        student, teacher = (
            Qwen3ForCausalLM.from_pretrained(self.folder / name, dtype=torch.float32) for name in ("student", "teacher")
        )
        config = GKDConfig(
            output_dir=str(self.folder / "trl"), lmbda=1.0, beta=0.5, temperature=1.0, max_new_tokens=new_tokens,
            per_device_train_batch_size=len(prompts), max_steps=10**6, learning_rate=1e-6, gradient_checkpointing=False,
            bf16=False, use_cpu=True, dataloader_pin_memory=False, report_to=[], logging_steps=10**9,
            save_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        words = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(WordLevel({"<pad>": 0}, unk_token="<pad>")), pad_token="<pad>"
        )
        self.trainer = GKDTrainer(
            model=student, teacher_model=teacher, args=config, processing_class=words, data_collator=_collate,
            train_dataset=Dataset.from_dict({"tokens": prompts}), callbacks=[self.gate],
        )  # fmt: skip
        self.trainer.generation_config.min_new_tokens = new_tokens
        self._count_tokens()
        return torch.get_num_threads()

    def _count_tokens(self) -> None:
        generate = self.trainer.generate_on_policy_outputs

        def counted(model, inputs, config):
            found = generate(model, inputs, config)
            self.new_tokens = found[0].numel() - inputs["prompts"].numel()
            return found

        self.trainer.generate_on_policy_outputs = counted

    def loss(self, tokens: list, prompt: int) -> float:
        """TRL's loss on tokens [B,N], of which the first `prompt` columns are the prompt."""
        ids = torch.tensor(tokens)
        labels = ids.clone()
        labels[:, :prompt] = -100
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
        with torch.no_grad():
            return self.trainer.compute_loss(self.trainer.model, inputs).item()

    def start(self, prompts: list, new_tokens: int) -> None:
        """Load the pair and let the trainer run up to its first step, in a thread of its own.

        Nothing else in this process may have used torch: a second thread that did has OpenMP workers too, with which
        all of them wait passively, and a step takes twice as long.
        """

        def train() -> None:
            self.load(prompts, new_tokens)
            self.trainer.train()

        self.thread = threading.Thread(target=train, daemon=True)
        self.thread.start()

    def step(self) -> int:
        """Generate, score, differentiate, update. Returns the tokens generated."""
        self.gate.allowed.release()
        while not self.gate.done.acquire(timeout=10):
            if not self.thread.is_alive():
                raise RuntimeError("the trainer has ended")
        return self.new_tokens


def _collate(rows: list) -> dict:
    ids = torch.tensor([row["tokens"] for row in rows])
    mask = torch.ones_like(ids)
    return {"prompts": ids, "prompt_attention_mask": mask, "input_ids": ids, "attention_mask": mask, "labels": ids}


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    rival = Rival(Path(sys.argv[1]))
    bench.answer({name: getattr(rival, name) for name in ("make", "load", "loss", "start", "step")})
    os._exit(0)  # the trainer's thread still waits for its turn
