"""Our side of step.py: plain OPD and MOTAB over a pair, by the programs that `python -m motab_jax.train` runs.

`python step_ours.py FOLDER` answers requests (bench.Worker), with a CPU device for each core: the mesh's `data` axis.
"""

import functools
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import bench
import jax
import jax.numpy as jnp
import numpy as np

from motab_jax.config import load_config
from motab_jax.data.pairs import SharedTokenizer
from motab_jax.data.steps import compile_delimiter
from motab_jax.models import Model, load_pretrained
from motab_jax.models.hf.weight_names import load_shardings
from motab_jax.rollout import BacktrackSpec, MonitorSpec, Prompts, RolloutConfig, SamplingSpec, rollout
from motab_jax.rollout.row_groups import run_per_group
from motab_jax.runtime.mesh import make_global_batch, make_mesh
from motab_jax.session.placement import layout, serving, teacher_serving
from motab_jax.session.rollout_config import teacher_rows
from motab_jax.session.session import Session
from motab_jax.training.programs import make_programs

now = time.perf_counter
MATRIX, WORDS = 2048, 1 << 26  # what the machine's rates are measured on


class Ours:
    """The pair of a folder, and two ways to distil it."""

    def __init__(self, folder: Path):
        self.folder, self.ways, self.taken = folder, {}, {}
        self.eps0 = 0.0

    def load(self, prompts: list, new_tokens: int, step_tokens: int) -> dict[str, int]:
        """prompts [B,P]: those of every step. One token in `step_tokens` ends a step of reasoning.

        Returns the operations of `matmul` and the bytes of `read`.
        """
        rows, columns = len(prompts), len(prompts[0])
        ways = math.gcd(rows, jax.device_count())
        self.mesh = make_mesh(ways, 1, 1, devices=jax.devices()[:ways])
        shardings = functools.partial(load_shardings, self.mesh)
        self.student, self.teacher = (
            Model(*load_pretrained(self.folder / name, shardings=shardings)) for name in ("student", "teacher")
        )
        update = layout(self.mesh, self.student.config, "update")
        self.student = Model(jax.device_put(self.student.params, update), self.student.config)
        lengths, numbers = np.full((rows,), columns, np.int32), np.arange(rows, dtype=np.int32)
        self.prompts = make_global_batch(self.mesh, rows, Prompts(np.array(prompts, np.int32), lengths, numbers))
        for name in ("opd", "motab"):
            self.ways[name], self.taken[name] = self._way(new_tokens, step_tokens, monitored=name == "motab"), 0
        # A function of its own, so that jit compiles it for generation without a teacher.
        by_row = (False, True, False)
        self.alone = jax.jit(run_per_group(lambda student, *others: rollout(student, None, *others), self.mesh, by_row))
        self.matrix, self.words = jnp.ones((MATRIX, MATRIX)), jnp.ones((WORDS,))
        self.multiply, self.add = jax.jit(jnp.matmul), jax.jit(jnp.sum)
        return {"flops": 2 * MATRIX**3, "bytes": 4 * WORDS}

    def _way(self, new_tokens: int, step_tokens: int, *, monitored: bool) -> dict[str, Any]:
        """The session, the programs and the state that `train` would have."""
        rows, vocabulary = len(self.prompts.lengths), self.student.config.vocab_size
        words = [f"objective.{source}_loss=jsd" for source in ("student", "teacher", "flawed")]
        words += ["objective.target=spliced", "optimizer.learning_rate=1e-9", f"rollout.batch_size={rows}"]
        words += [f"rollout.max_new_tokens={new_tokens}"]
        pieces = [b"\n" if token % step_tokens == 0 else b"x" for token in range(vocabulary)]
        config = load_config(None, words)
        numbers = RolloutConfig(
            automaton=compile_delimiter("\n", pieces), stop_ids=jnp.array([-1]), eps0=jnp.float32(0.0),
            theta=jnp.float32(0.0), skip_teacher=jnp.array(False), vocab_size=vocabulary, max_new_tokens=new_tokens,
            sampling=SamplingSpec(1.0, 0, 1.0), monitor=MonitorSpec(enabled=monitored), score_after=not monitored,
            backtrack=BacktrackSpec(teacher_rows=teacher_rows(config, self.mesh)),
        )  # fmt: skip
        teacher = teacher_serving(self.mesh, self.teacher.config, scan_layers=config.rollout.scan_layers)(
            self.teacher.params
        )
        serve = serving(
            self.mesh, self.student.config, scan_layers=config.rollout.scan_layers, dtype=config.rollout.serve_dtype
        )
        session = Session(
            config=config, mesh=self.mesh, student=self.student, teacher=teacher, source="",
            shared=SharedTokenizer(None, vocabulary, -1, (-1,)), rollout_config=numbers, to_serving=serve,
        )  # fmt: skip
        programs = make_programs(session)
        state = programs.init(jax.tree.map(jnp.array, session.student.params))  # copies, for they are donated
        return {"session": session, "programs": programs, "state": state}

    def step(self, way: str) -> dict[str, Any]:
        """One step of `opd` or `motab`: seconds by program, what was written, the loss."""
        learner, began = self.ways[way], now()
        found = self._roll_out(way, self.taken[way])
        rolled = now()
        learner["state"], figures = learner["programs"].update(
            learner["state"], learner["programs"].teacher_head, found
        )
        jax.block_until_ready(learner["state"])
        self.taken[way] += 1
        seconds = {"rollout": rolled - began, "update": now() - rolled}
        return {**seconds, **_described(found), "loss": float(figures["loss"])}

    def first(self) -> dict[str, Any]:
        """The first step of plain OPD: its loss and its tokens [B,P+T], prompts included."""
        found = self._roll_out("opd", self.taken["opd"])
        tokens = jnp.concatenate([found.prompt_tokens, found.tokens[:, : int(found.length[0])]], axis=1)
        return {"tokens": np.asarray(tokens).tolist(), "loss": self.step("opd")["loss"]}

    def decode(self) -> None:
        """The student's part of a rollout alone."""
        session, state = self.ways["opd"]["session"], self.ways["opd"]["state"]
        student = session.serve(state.params)
        jax.block_until_ready(self.alone(student, self.prompts, jax.random.key(0), session.rollout_config))

    def _roll_out(self, way: str, place: int):
        """The trajectory of step number `place`."""
        session, programs = self.ways[way]["session"], self.ways[way]["programs"]
        student = session.serve(self.ways[way]["state"].params)
        numbers = session.rollout_config.replace(eps0=jnp.float32(self.eps0))
        found = programs.on_policy(student, session.teacher, self.prompts, jax.random.key(place), numbers)
        return jax.block_until_ready(found)

    def set_boundary(self, share: float, steps: int) -> float:
        """Choose eps0 so that `share` of the rows of steps 1..steps (0 is the warm-up) stray; returns eps0.

        The boundary is fixed (theta = 0), so a row strays if the least of its step values is below eps0: without any
        rewind (eps0 = 0) a rollout shows all of them, and eps0 is their quantile.
        """
        least = []
        for place in range(1, steps + 1):
            steps_found = self._roll_out("motab", place).steps
            real = np.arange(steps_found.value.shape[1])[None] < np.asarray(steps_found.count)[:, None]
            least += np.where(real, steps_found.value, np.inf).min(axis=1).tolist()
        least.sort()
        cut = round(share * len(least))
        self.eps0 = (least[cut - 1] + least[cut]) / 2
        return self.eps0

    def matmul(self) -> None:
        """A multiplication of square matrices."""
        jax.block_until_ready(self.multiply(self.matrix, self.matrix))

    def read(self) -> None:
        """A sum over more numbers than any cache holds."""
        jax.block_until_ready(self.add(self.words))


def _described(found) -> dict[str, float]:
    """Tokens emitted and kept, share of rows that were rewound."""
    return {
        "emitted": int(found.length.sum()),
        "kept": int(found.kept.sum()),
        "strayed": float((found.num_rewinds > 0).mean()),
    }


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))
    ours = Ours(Path(sys.argv[1]))
    bench.answer(
        {name: getattr(ours, name) for name in ("load", "first", "step", "decode", "set_boundary", "matmul", "read")}
    )
