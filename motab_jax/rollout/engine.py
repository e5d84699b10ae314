"""The rollout: one lax.while_loop in which the student generates, the teacher scores, and rows backtrack.

Source: MOTAB (arXiv 2605.19433), eq. 5-11. Segments, slots and parking change the speed and never the result: a token
depends on its row's own tokens, its row id, the number of rewinds and its position. An iteration puts up to C columns
on the tape: one model decodes them, or their tokens are known. Then each model whose cache lacks them prefills them.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key

from motab_jax.data.sources import Source
from motab_jax.models.cache import gather_columns
from motab_jax.models.transformer import Model
from motab_jax.rollout import monitor, trajectory
from motab_jax.rollout.config import UNLIMITED, Prompts, RolloutConfig
from motab_jax.rollout.counters import count
from motab_jax.rollout.decode import (
    DecodeState,
    ModelState,
    Segment,
    SegmentInputs,
    append_known,
    decode_segment,
    prefill_segment,
)
from motab_jax.rollout.decode_subset import decode_subset
from motab_jax.rollout.rows import compact_left, gather_rows, run_if, scatter_rows, scatter_windows, take_per_row
from motab_jax.rollout.sampling import uniforms
from motab_jax.rollout.score_finished import score_trajectories
from motab_jax.rollout.slots import Phase, call_teacher, choose_iteration, phase_of_slots, refill, update_rows
from motab_jax.rollout.state import RolloutState, empty_log, empty_segment, initial_state
from motab_jax.rollout.tape import Tape, pack, rewind
from motab_jax.rollout.teacher_scores import score_hidden
from motab_jax.rollout.trajectory import FinishReason, Trajectory

PACK_ABOVE = 512  # columns; a shorter tape is packed only when it is full

Decoding = tuple[ModelState, Tape, DecodeState, Segment]


def rollout(
    student: Model, teacher: Model | None, prompts: Prompts, key: Key[Array, ""], config: RolloutConfig
) -> Trajectory:
    """Trajectories of N prompts. Pure and jit-able.

    Args:
      student: the model that generates.
      teacher: scores, intervenes and gives the targets; None: the student generates alone and nothing is scored.
      prompts: left-padded.
      key: a typed PRNG key, folded with each row's id.
      config: how to sample, judge and backtrack. With score_after, and no monitor, the teacher isn't in the loop and
          scores the finished rows; the step table then holds no values.

    Returns:
      One trajectory a row.
    """
    teacher_in_loop = None if config.teacher_scores_after else teacher
    loop = _Loop(
        student, teacher_in_loop, prompts, jax.vmap(functools.partial(jax.random.fold_in, key))(prompts.row_ids), config
    )
    log = jax.lax.while_loop(
        loop.unfinished,
        loop.iterate,
        initial_state(student, teacher_in_loop, empty_log(teacher, prompts, config), prompts, config, loop.slots),
    ).log
    if teacher is None or not config.teacher_scores_after:
        return log
    return run_if(loop.is_scoring, lambda finished: score_trajectories(teacher, finished, config), log)


class Iteration(NamedTuple):
    """What an iteration does, in which slots and columns."""

    kind: Int[Array, ""]  # a Phase: PREFILL, STUDENT_GENERATES or TEACHER_GENERATES
    active: Bool[Array, "B"]  # the slots that take part
    start: Int[Array, ""]  # the segment's first column

    @property
    def by_student(self) -> Bool[Array, ""]:
        """Whether the student generates."""
        return self.kind == Phase.STUDENT_GENERATES

    @property
    def by_teacher(self) -> Bool[Array, ""]:
        """Whether the teacher generates."""
        return self.kind == Phase.TEACHER_GENERATES


class _Loop:
    """The loop's constants; its methods are the parts of the loop's body. N rows, B slots, C columns of a segment."""

    def __init__(
        self,
        student: Model,
        teacher: Model | None,
        prompts: Prompts,
        row_keys: Key[Array, "N"],
        config: RolloutConfig,
    ):
        self.student, self.teacher, self.config = student, teacher, config
        self.prompts, self.row_keys = prompts, row_keys
        self.slots = min(config.slots or len(prompts.lengths), len(prompts.lengths))
        # Slots that the teacher decodes at a time; 0: all.
        self.teacher_rows = config.backtrack.teacher_rows if config.backtrack.teacher_rows < self.slots else 0
        self.has_queue = self.slots < len(prompts.lengths)
        self.is_scoring = jnp.array(True) if config.skip_teacher is None else ~config.skip_teacher
        self.intervener = teacher if config.max_rewinds > 0 else None

    def row(self, state: RolloutState) -> Int[Array, "B"] | None:
        """The slots' rows, for rollout/rows.py."""
        return state.slots.row if self.has_queue else None

    def phase(self, state: RolloutState) -> Int[Array, "B"]:
        """The phase of each slot's row."""
        return phase_of_slots(state.rows, state.slots, self.row(state))

    def unfinished(self, state: RolloutState) -> Bool[Array, ""]:
        """Whether any row still generates."""
        return jnp.any(state.rows.phase != Phase.DONE)

    def iterate(self, state: RolloutState) -> RolloutState:
        """One iteration: put a segment on the tape, known tokens or generated ones, then score and judge it."""
        state = self.pack_if_full(self.assign_slots(state))
        kind, active = choose_iteration(
            state.rows, state.slots, self.row(state), state.teacher_called, state.previous, self.teacher_rows
        )
        iteration = Iteration(kind, active, state.tape.cursor)
        inputs, slots = self.segment_inputs(state), state.slots
        segment = empty_segment(self.student, self.teacher, self.config, self.slots)
        budget = jnp.where(iteration.by_teacher, slots.budget, UNLIMITED)
        decode = DecodeState(active & (kind == Phase.PREFILL), slots.position, slots.automaton, budget)
        tape, decode, segment = append_known(state.tape, decode, inputs, segment)
        student, tape, decode, segment = decode_segment(
            self.student, state.student, tape, decode.replace(active=active & iteration.by_student), segment, inputs,
            self.config, record_scores=False,
        )  # fmt: skip
        state = state.replace(student=student)
        if self.intervener is not None and state.teacher is not None:
            carry = state.teacher, tape, decode.replace(active=active & iteration.by_teacher), segment
            teacher, tape, decode, segment = self.decode_with_teacher(
                self.intervener, carry, inputs, iteration.by_teacher
            )
            state = state.replace(teacher=teacher)
        state, segment = self.prefill_and_score(state.replace(tape=tape, previous=kind), segment, iteration)
        return self.judge(self.count(state, segment, iteration), segment, decode, iteration)

    def assign_slots(self, state: RolloutState) -> RolloutState:
        """Give free slots to waiting rows, and call the teacher if enough rows wait for it."""
        if self.intervener is not None:
            threshold = self.config.backtrack.teacher_batch or self.slots
            state = state.replace(teacher_called=call_teacher(state.rows, state.teacher_called, threshold))
        if not self.has_queue:
            return state

        def assign(carry):
            rows, slots, tape = carry
            rows, slots, changed = refill(rows, slots, state.teacher_called, self.config.teacher_budget)
            return rows, slots, rewind(tape, jnp.where(changed, 0, UNLIMITED))

        waiting = jnp.any(~state.rows.assigned & (state.rows.phase != Phase.DONE))
        rows, slots, tape = run_if(waiting, assign, (state.rows, state.slots, state.tape))
        return state.replace(rows=rows, slots=slots, tape=tape)

    def pack_if_full(self, state: RolloutState) -> RolloutState:
        """Pack the tape when a segment would not fit, or when most of a long tape is dead."""
        done = self.phase(state) == Phase.DONE
        longest = jnp.max(jnp.where(done, 0, state.slots.position))

        def pack_all(carry):
            tape, models = carry
            tape, source = pack(rewind(tape, jnp.where(done, 0, UNLIMITED)))
            return tape, [model.replace(cache=gather_columns(model.cache, source)) for model in models]

        full = state.tape.cursor + self.config.segment_tokens > state.tape.columns
        wasteful = state.tape.cursor > 2 * longest + PACK_ABOVE
        models = [state.student] if state.teacher is None else [state.student, state.teacher]
        tape, models = run_if(full | wasteful, pack_all, (state.tape, models))
        log = state.log.replace(counters=count(state.log.counters, packings=full | wasteful))
        return state.replace(
            tape=tape, student=models[0], teacher=None if state.teacher is None else models[1], log=log
        )

    def segment_inputs(self, state: RolloutState) -> SegmentInputs:
        """The next C known tokens of the slots' rows, and the uniform numbers that the columns are sampled with."""
        row = self.row(state)
        rows = gather_rows(state.rows, row)
        index = state.slots.position[:, None] + jnp.arange(self.config.segment_tokens, dtype=jnp.int32)[None]
        draw = jax.vmap(uniforms, in_axes=(None, None, 1), out_axes=1)
        return SegmentInputs(
            tokens=jnp.take_along_axis(rows.tokens, jnp.minimum(index, rows.tokens.shape[1] - 1), axis=1),
            num_tokens=rows.num_tokens,
            limit=rows.limit,
            uniforms=draw(
                gather_rows(self.row_keys, row),
                gather_rows(state.log.num_rewinds, row),
                index - rows.prompt_length[:, None],
            ),
        )

    def decode_with_teacher(
        self, teacher: Model, carry: Decoding, inputs: SegmentInputs, by_teacher: Bool[Array, ""]
    ) -> Decoding:
        """Decode a segment with the teacher, if it generates in this iteration."""
        if not self.teacher_rows:
            return decode_segment(teacher, *carry, inputs, self.config, record_scores=True)

        def decode(carry: Decoding) -> Decoding:
            return decode_subset(teacher, *carry, inputs, self.config, rows=self.teacher_rows)

        return run_if(by_teacher, decode, carry)

    def prefill_and_score(
        self, state: RolloutState, segment: Segment, iteration: Iteration
    ) -> tuple[RolloutState, Segment]:
        """Prefill the segment into the caches of the models that didn't decode it; score it if the student did."""
        config, teacher = self.config, self.teacher
        student_goes_on = jnp.any(self.phase(state) == Phase.STUDENT_GENERATES) | config.hands_back
        for_student = (iteration.kind == Phase.PREFILL) & student_goes_on
        if config.hands_back:
            for_student |= iteration.by_teacher

        def prefill_student(model_state: ModelState) -> ModelState:
            return prefill_segment(self.student, model_state, state.tape, segment, iteration.start)[0]

        state = state.replace(student=run_if(for_student, prefill_student, state.student))
        if teacher is None:
            return state, segment

        def prefill_teacher(carry):
            return prefill_segment(teacher, carry[0], state.tape, segment, iteration.start)

        def score(_):
            compares = segment.student_hidden.shape[-1] > 0
            return score_hidden(
                teacher, hidden, segment.tokens, config.monitor, vocab_size=config.vocab_size,
                targets_k=config.targets_k, student=self.student if compares else None,
                student_hidden=segment.student_hidden if compares else None,
            )  # fmt: skip

        teacher_state, hidden = run_if(
            self.is_scoring & ~iteration.by_teacher, prefill_teacher, (state.teacher, segment.hidden)
        )
        scores = run_if(self.is_scoring & iteration.by_student, score, segment.scores)
        return state.replace(teacher=teacher_state), segment.replace(hidden=hidden, scores=scores)

    def count(self, state: RolloutState, segment: Segment, iteration: Iteration) -> RolloutState:
        """Count what the iteration did."""
        decoded = state.tape.cursor - iteration.start
        prefilled = iteration.kind == Phase.PREFILL
        reread = segment.forced & (self.phase(state) == Phase.TEACHER_GENERATES)[:, None]
        counters = count(
            state.log.counters,
            student_iterations=iteration.by_student,
            teacher_iterations=iteration.by_teacher,
            prefill_iterations=prefilled,
            student_columns=decoded * self.slots * iteration.by_student,
            teacher_columns=decoded * (self.teacher_rows or self.slots) * iteration.by_teacher,
            busy_columns=jnp.sum(segment.alive) * ~prefilled,
            tape_columns=state.tape.cursor * self.slots,
            live_columns=jnp.sum(state.tape.positions >= 0),
            teacher_scored=jnp.sum(segment.generated) * (self.teacher is not None),
            teacher_reread=jnp.sum(reread) * (self.teacher is not None),
        )
        return state.replace(log=state.log.replace(counters=counters))

    def judge(self, state: RolloutState, segment: Segment, decode: DecodeState, iteration: Iteration) -> RolloutState:
        """Log what was generated, judge the student's steps, and set the next phase of each row."""
        config, row = self.config, self.row(state)
        judged = config.monitor.enabled & iteration.by_student
        source = jnp.where(iteration.by_teacher, Source.TEACHER, Source.STUDENT)
        columns = monitor.Columns(
            segment.scores.signal, segment.scores.entropy, segment.generated, segment.stop, segment.closes
        )
        completion = state.rows.num_tokens - state.rows.prompt_length
        open_step, steps, accepted, breach = monitor.observe(
            state.slots.open_step, state.log.steps, columns, gather_rows(state.log.length, row),
            (config.breach_ends_row | (gather_rows(state.log.num_rewinds, row) < config.max_rewinds)) & judged,
            eps0=config.eps0, theta=config.theta, source=source, judged=judged, row=row, spec=config.monitor,
            discarded=gather_rows(state.log.length - completion, row),
            discard_limit=None if config.breach_ends_row else config.max_discarded,
            may_discard_all=config.backtrack.target == "root",
        )  # fmt: skip
        log = trajectory.extend(
            state.log.replace(steps=steps), segment.tokens, segment.scores, segment.hidden, accepted, source, row
        )
        num_tokens = gather_rows(state.rows.num_tokens, row)
        tokens = scatter_windows(state.rows.tokens, row, num_tokens, compact_left(accepted, segment.tokens))
        num_tokens = num_tokens + jnp.sum(accepted, axis=1, dtype=jnp.int32)
        budget = jnp.where(iteration.by_teacher, decode.budget, state.slots.budget)
        state = state.replace(
            log=log,
            rows=state.rows.replace(tokens=tokens, num_tokens=scatter_rows(state.rows.num_tokens, row, num_tokens)),
            slots=state.slots.replace(
                position=decode.position, automaton=decode.automaton, budget=budget, open_step=open_step
            ),
        )
        state = self.finish(state, segment, accepted, breach)
        if self.intervener is None:
            return state
        state = run_if(jnp.any(breach), lambda s: self.backtrack(s, breach), state)
        return self.hand_back(state, iteration.active & iteration.by_teacher) if config.hands_back else state

    def finish(
        self, state: RolloutState, segment: Segment, accepted: Bool[Array, "B C"], breach: Bool[Array, "B"]
    ) -> RolloutState:
        """End the rows that reached a stop token or the length limit, or that a breach ends."""
        row = self.row(state)
        stopped = jnp.any(accepted & segment.stop, axis=1)
        full = gather_rows(state.rows.num_tokens, row) >= gather_rows(state.rows.limit, row)
        done = jnp.any(accepted, axis=1) & ~breach & (stopped | full)
        reason = jnp.where(
            done, jnp.where(stopped, FinishReason.STOP, FinishReason.LENGTH), gather_rows(state.log.finish, row)
        )
        if self.config.breach_ends_row:
            done, reason = done | breach, jnp.where(breach, FinishReason.MONITOR, reason)
        return state.replace(
            rows=update_rows(state.rows, row, done, phase=Phase.DONE),
            log=state.log.replace(finish=scatter_rows(state.log.finish, row, reason)),
        )

    def backtrack(self, state: RolloutState, breach: Bool[Array, "B"]) -> RolloutState:
        """Rewind the rows that breached to their last safe state; the teacher generates from there (eq. 8-10).

        The last kept token leaves the tape as well: prefilling it again gives the teacher the state that predicts the
        next token.
        """
        row, slots = self.row(state), state.slots
        steps = gather_rows(state.log.steps, row)
        find_root = functools.partial(monitor.find_root, target=self.config.backtrack.target, spec=self.config.monitor)
        root = jax.vmap(find_root)(steps, slots.open_step.first)
        first = take_per_row(steps.start, root)
        kept = gather_rows(state.rows.num_tokens, row) - (gather_rows(state.log.length, row) - first)
        return state.replace(
            tape=rewind(state.tape, jnp.where(breach, kept - 1, UNLIMITED)),
            log=trajectory.discard(state.log, breach, root, row),
            rows=update_rows(state.rows, row, breach, num_tokens=kept, phase=Phase.TEACHER_GENERATES),
            slots=slots.replace(
                position=jnp.where(breach, kept - 1, slots.position),
                automaton=jnp.where(breach, 0, slots.automaton),
                budget=jnp.where(breach, self.config.teacher_budget, slots.budget),
            ),
        )

    def hand_back(self, state: RolloutState, decoded: Bool[Array, "B"]) -> RolloutState:
        """Return rows in which the teacher has generated all its steps to the student."""
        row, slots = self.row(state), state.slots
        in_intervention = gather_rows(state.rows.phase, row) == Phase.TEACHER_GENERATES
        back = decoded & in_intervention & (slots.budget <= 0)
        first = jnp.where(back, gather_rows(state.log.steps.count, row), slots.open_step.first)
        return state.replace(
            rows=update_rows(state.rows, row, back, phase=Phase.STUDENT_GENERATES),
            slots=slots.replace(
                automaton=jnp.where(back, 0, slots.automaton), open_step=slots.open_step.replace(first=first)
            ),
        )
