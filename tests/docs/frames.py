"""`python -m tests.docs.frames RUNS`: the calls between `python -m motab_jax.train` and two of its computations.

It trains on the shipped pair until the loss is traced, and prints as JSON the stacks, as `path::function` from the
verb's `work` on, in which the package computes a decoded token's logits ("product") and a divergence of student and
teacher ("kl"). Frames of libraries are left out, and so are the evaluation and the short rollouts before the first
step, which trace the same functions. Calls that jax makes when it traces are real frames; on a device nothing is
called.
"""

import json
import sys
import traceback
from pathlib import Path

import jax
import jax.numpy as jnp

import motab_jax.train as verb
import motab_jax.training.loop as loop
from motab_jax.quickstart import STUDENT
from motab_jax.training.phase_times import PhaseCosts

PACKAGE = Path(verb.__file__).parent
VOCAB = json.loads((Path(STUDENT) / "config.json").read_text())["vocab_size"]
STACKS: dict[str, list[list[str]]] = {"product": [], "kl": []}


class Found(BaseException):
    """The loss was traced: the rest of the run is not needed."""


def stack() -> list[str]:
    """The frames of the package, from the verb's `work` on."""
    frames = [frame for frame in traceback.extract_stack() if frame.filename.startswith(f"{PACKAGE}/")]
    names = [f"{Path(frame.filename).relative_to(PACKAGE)}::{frame.name}" for frame in frames]
    return names[names.index("train.py::work") :] if "train.py::work" in names else []


def watch_product(module, name: str) -> None:
    """Note the stacks in which the package itself computes logits with `module.name` while it decodes."""
    real = getattr(module, name)

    def product(*arguments, **keywords):
        out = real(*arguments, **keywords)
        by_package = sys._getframe(1).f_code.co_filename.startswith(f"{PACKAGE}/")
        names = stack()
        if by_package and VOCAB in out.shape and any(frame.startswith("rollout/decode") for frame in names):
            STACKS["product"].append([*names, name])
        return out

    setattr(module, name, product)


def watch_kl() -> None:
    """Note the stack in which a divergence takes the log-softmax of logits, and end the run there."""
    real = jax.nn.log_softmax

    def log_softmax(*arguments, **keywords):
        names = stack()
        if names and names[-1].startswith("distill/divergence"):
            STACKS["kl"].append(names)
            raise Found
        return real(*arguments, **keywords)

    jax.nn.log_softmax = log_softmax


def train(runs: str) -> None:
    """A run of one step, up to the loss."""
    loop.evaluate_student = lambda *_: {"accuracy": 0.0}
    loop.measure_phase_costs = lambda *_: PhaseCosts(0.0, 0.0, 0.0, 0.0, 0.0)
    watch_product(jnp, "einsum")
    watch_product(jax.lax, "dot_general")
    watch_kl()
    sizes = ["rollout.batch_size=2", "rollout.max_new_tokens=8", "rollout.segment_tokens=4"]
    losses = ["objective.student_loss=reverse_kl", "objective.teacher_loss=forward_kl"]
    verb.work([f"run.dir={runs}", "run.steps=1", *sizes, *losses])


if __name__ == "__main__":
    try:
        train(sys.argv[1])
    except Found:
        print(json.dumps(STACKS))
