"""The rollout: one lax.while_loop. The student writes, the teacher judges, strays are rewound, the teacher writes.

Source: MOTAB (arXiv 2605.19433), eq. 5-11. Segments change the speed and never the result: a token depends on its row's
own text, its row id, the number of rewinds and its position. Left out: refilling of finished slots.
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp

from motab_jax.data.sources import STUDENT, TEACHER
from motab_jax.data.steps import StepAutomaton
from motab_jax.models.cache import gather_columns, init_cache
from motab_jax.models.transformer import Model, encode
from motab_jax.rollout import monitor, trajectory
from motab_jax.rollout.decode import ENDLESS, Reader, Rows, Segment, Writing, read_segment, write_segment
from motab_jax.rollout.tape import Tape, packing, rewind, start
from motab_jax.rollout.trajectory import LENGTH, STOP, Trajectory

STUDENT_WRITES, TEACHER_WRITES, DONE = range(3)


@flax.struct.dataclass
class Prompts:
    """A batch of prompts; B rows, P columns."""

    tokens: jax.Array  # i32[B,P]; left-padded
    lengths: jax.Array  # i32[B]
    row_ids: jax.Array  # i32[B]; what sampling keys fold, so a row's result doesn't depend on its place


def _static(default=None):
    return flax.struct.field(pytree_node=False, default=default)


@flax.struct.dataclass
class RolloutConfig:
    """The engine's numbers. Array leaves may change from call to call; the rest is compiled in."""

    automaton: StepAutomaton  # of the step delimiter
    stop_ids: jax.Array  # i32[X]
    eps0: jax.Array  # f32[]
    theta: jax.Array  # f32[]
    vocab_size: int = _static()  # the tokenizer's; logits beyond never count
    max_new_tokens: int = _static(128)
    segment_tokens: int = _static(16)
    temperature: float = _static(0.6)
    top_k: int = _static(0)
    top_p: float = _static(0.95)
    monitored: bool = _static(True)
    target: str = _static("root")  # or breach
    intervention: str = _static("suffix")  # or steps
    steps: int = _static(1)
    max_interventions: int = _static(1)
    entropy_top_k: int = _static(0)

    @property
    def rewinds(self) -> int:
        """How often one trajectory can be rewound at most."""
        return self.max_interventions if self.monitored else 0

    @property
    def hands_back(self) -> bool:
        """Whether the student may have to go on after the teacher."""
        return self.rewinds > 0 and self.intervention == "steps"


@flax.struct.dataclass
class RolloutState:
    """The loop's carry; B rows."""

    tape: Tape
    student: Reader
    teacher: Reader | None
    log: Trajectory
    open: monitor.OpenStep
    phase: jax.Array  # i32[B]; STUDENT_WRITES, TEACHER_WRITES, DONE
    rows: Rows


def rollout(
    student: Model, teacher: Model | None, prompts: Prompts, key: jax.Array, config: RolloutConfig
) -> Trajectory:
    """Trajectories of B prompts. Without a teacher the student generates alone and nothing is scored.

    Pure and jit-able; `key` is a typed PRNG key, folded with each row's id.
    """
    loop = _Loop(
        student, teacher, prompts, jax.vmap(functools.partial(jax.random.fold_in, key))(prompts.row_ids), config
    )
    final = jax.lax.while_loop(loop.unfinished, loop.body, loop.begin())
    return final.log


class _Loop:
    """What stays the same through the loop; its methods are the loop's verbs."""

    def __init__(self, student: Model, teacher: Model | None, prompts: Prompts, row_keys, config: RolloutConfig):
        self.student, self.teacher, self.config = student, teacher, config
        self.prompts, self.row_keys = prompts, row_keys
        self.how = Writing(
            config.automaton, config.stop_ids, config.vocab_size, config.segment_tokens,
            config.max_new_tokens, config.temperature, config.top_k, config.top_p,
        )  # fmt: skip

    def begin(self) -> RolloutState:
        """Prefill both caches with the prompts; the student has the word."""
        config, (batch, width) = self.config, self.prompts.tokens.shape
        index = jnp.arange(width, dtype=jnp.int32)[None] - (width - self.prompts.lengths[:, None])
        positions = jnp.maximum(index, -1)
        slack = max(config.segment_tokens, config.max_new_tokens // 4)
        tape = start(self.prompts.tokens, positions, width + config.max_new_tokens + slack)
        entries = config.max_new_tokens * (1 + config.rewinds) + config.segment_tokens
        size, dtype = (
            (0, jnp.float32) if self.teacher is None else (self.teacher.config.width, self._dtype(self.teacher))
        )
        zero = jnp.zeros((batch,), jnp.int32)
        return RolloutState(
            tape=tape,
            student=self._prefill(self.student, tape, positions),
            teacher=None if self.teacher is None else self._prefill(self.teacher, tape, positions),
            log=trajectory.empty_trajectory(self.prompts.tokens, positions, entries, config.rewinds, size, dtype),
            open=monitor.open_step(batch),
            phase=zero + STUDENT_WRITES,
            rows=Rows(zero > 0, zero, zero, zero),
        )

    @staticmethod
    def _dtype(model: Model):
        return model.params["embed"].dtype

    def _prefill(self, model: Model, tape: Tape, positions) -> Reader:
        batch, columns = tape.tokens.shape
        cache = init_cache(model.config, batch, columns, self._dtype(model))
        hidden, cache = encode(
            model.params, model.config, self.prompts.tokens, positions, cache=cache, key_positions=tape.positions
        )
        return Reader(cache, hidden[:, -1])

    def unfinished(self, state: RolloutState) -> jax.Array:
        """Whether any row still has a writer."""
        return jnp.any(state.phase != DONE)

    def body(self, state: RolloutState) -> RolloutState:
        """One round: the student writes and is judged, then the teacher writes where it has the word."""
        state = self.when(state.phase == STUDENT_WRITES, self.student_turn, state)
        if self.config.rewinds > 0 and self.teacher is not None:
            state = self.when(state.phase == TEACHER_WRITES, self.teacher_turn, state)
        return state

    def when(self, rows, turn, state: RolloutState) -> RolloutState:
        """Take the turn if any row needs it, on a tape that has room for it."""
        return jax.lax.cond(jnp.any(rows), lambda s: turn(self.make_room(s)), lambda s: s, state)

    def make_room(self, state: RolloutState) -> RolloutState:
        """Pack the tape when a segment would not fit."""

        def pack(state: RolloutState) -> RolloutState:
            tape, source = packing(state.tape)

            def move(reader: Reader) -> Reader:
                return reader.replace(cache=gather_columns(reader.cache, source))

            teacher = None if state.teacher is None else move(state.teacher)
            return state.replace(tape=tape, student=move(state.student), teacher=teacher)

        full = state.tape.cursor + self.config.segment_tokens > state.tape.tokens.shape[1]
        return jax.lax.cond(full, pack, lambda s: s, state)

    def write(self, model: Model, reader: Reader, state: RolloutState, phase: int, budget, keep_hidden: bool):
        """Let a model write a segment in the rows of one phase; budget i32[B] is theirs, the others keep their own."""
        turn = state.phase == phase
        rows = state.rows.replace(active=turn, budget=jnp.where(turn, budget, state.rows.budget))
        return write_segment(
            model, reader, state.tape, rows, self.how, offset=self.prompts.lengths,
            row_keys=self.row_keys, rewinds=state.log.num_rewinds, keep_hidden=keep_hidden,
        )  # fmt: skip

    def student_turn(self, state: RolloutState) -> RolloutState:
        """The student writes a segment, the teacher reads it, the monitor judges, strays are rewound."""
        endless = jnp.full_like(state.phase, ENDLESS)
        reader, tape, rows, segment = self.write(self.student, state.student, state, STUDENT_WRITES, endless, False)
        state = state.replace(student=reader, tape=tape, rows=rows)
        hidden = segment.hidden
        if self.teacher is not None:
            teacher, hidden = read_segment(self.teacher, state.teacher, tape, segment)
            state = state.replace(teacher=teacher)
        state, accepted, breach = self.judge(state, segment, hidden, STUDENT)
        state = self.finish(state, segment, accepted, breach)
        return self.backtrack(state, breach) if self.config.rewinds > 0 and self.teacher is not None else state

    def teacher_turn(self, state: RolloutState) -> RolloutState:
        """The teacher writes a segment; where its steps are used up, the student reads it and has the word again."""
        reader, tape, rows, segment = self.write(
            self.teacher, state.teacher, state, TEACHER_WRITES, state.rows.budget, True
        )
        wrote = state.phase == TEACHER_WRITES
        state = state.replace(teacher=reader, tape=tape, rows=rows)
        if self.config.hands_back:
            state = state.replace(student=read_segment(self.student, state.student, tape, segment)[0])
        state, accepted, _ = self.judge(state, segment, segment.hidden, TEACHER)
        state = self.finish(state, segment, accepted, jnp.zeros_like(wrote))
        back = wrote & (state.phase == TEACHER_WRITES) & (rows.budget <= 0)
        return state.replace(
            phase=jnp.where(back, STUDENT_WRITES, state.phase),
            rows=rows.replace(automaton=jnp.where(back, 0, rows.automaton)),
            open=state.open.replace(first=jnp.where(back, state.log.steps.count, state.open.first)),
        )

    def judge(self, state: RolloutState, segment: Segment, hidden, source: int):
        """Score the segment, judge its steps and enter it in the log; returns (state, accepted [B,C], breach [B])."""
        config = self.config
        if self.teacher is None:
            logprob = entropy = jnp.zeros(segment.tokens.shape, jnp.float32)
        else:
            logprob, entropy = monitor.score(
                self.teacher, hidden, segment.tokens, vocab_size=config.vocab_size, entropy_top_k=config.entropy_top_k
            )
        judged = config.monitored and source == STUDENT
        columns = monitor.Columns(logprob, entropy, segment.alive, segment.stop, segment.closes)
        open_, steps, accepted, breach = monitor.observe(
            state.open, state.log.steps, columns, state.log.length,
            (state.log.num_rewinds < config.rewinds) & judged,
            eps0=config.eps0, theta=config.theta, source=source, judged=judged,
        )  # fmt: skip
        log = trajectory.extend(state.log.replace(steps=steps), segment.tokens, logprob, hidden, accepted, source)
        return state.replace(open=open_, log=log), accepted, breach

    def finish(self, state: RolloutState, segment: Segment, accepted, breach) -> RolloutState:
        """Rows whose writer came to a stop token or to the length limit are done."""
        wrote, stopped = jnp.any(accepted, axis=1), jnp.any(accepted & segment.stop, axis=1)
        done = wrote & ~breach & (stopped | (state.rows.length >= self.config.max_new_tokens))
        reason = jnp.where(stopped, STOP, LENGTH)
        return state.replace(
            phase=jnp.where(done, DONE, state.phase),
            log=state.log.replace(finish=jnp.where(done, reason, state.log.finish)),
        )

    def backtrack(self, state: RolloutState, breach) -> RolloutState:
        """Rewind the rows that strayed to their last safe state, where the teacher gets the word (eq. 8-10)."""
        root = monitor.find_root(state.log.steps, state.open.first, self.config.target)
        first = trajectory.pick(state.log.steps.start, root)
        state_before = trajectory.pick(state.log.teacher_hidden, first)
        dropped = jnp.where(breach, state.log.length - first, 0)
        # Columns behind the breaching step were written but never accepted; the row's length forgets them as well.
        kept = jnp.sum(state.log.kept, axis=1, dtype=jnp.int32) - dropped
        length = jnp.where(breach, kept, state.rows.length)
        budget = self.config.steps if self.config.intervention == "steps" else ENDLESS
        return state.replace(
            tape=rewind(state.tape, jnp.where(breach, self.prompts.lengths + length, ENDLESS)),
            teacher=state.teacher.replace(hidden=jnp.where(breach[:, None], state_before, state.teacher.hidden)),
            log=trajectory.discard(state.log, breach, root),
            phase=jnp.where(breach, TEACHER_WRITES, state.phase),
            rows=Rows(
                state.rows.active, length, jnp.where(breach, 0, state.rows.automaton),
                jnp.where(breach, budget, state.rows.budget),
            ),
        )  # fmt: skip
