"""The rollout: one lax.while_loop. The student writes, the teacher judges, strays are rewound, the teacher writes.

Source: MOTAB (arXiv 2605.19433), eq. 5-11. Segments, slots and parking change the speed and never the result: a token
depends on its row's own text, its row id, the number of rewinds and its position. A turn puts up to C columns on the
tape: a model writes them, or known text is laid out; then whoever has not seen them reads them in one pass.
"""

import functools

import jax
import jax.numpy as jnp

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
from motab_jax.rollout.rows import compact_left, gather_rows, run_if, scatter_rows, scatter_windows, take_per_row
from motab_jax.rollout.sampling import uniforms
from motab_jax.rollout.score_finished import score_trajectories
from motab_jax.rollout.slots import (
    DONE,
    READ,
    STUDENT_WRITES,
    TEACHER_WRITES,
    Slots,
    choose_iteration,
    phases,
    refill,
    teacher_is_called,
    update_rows,
)
from motab_jax.rollout.state import RolloutState, begin, empty_log, empty_segment
from motab_jax.rollout.tape import packing, rewind
from motab_jax.rollout.teacher_scores import score_hidden
from motab_jax.rollout.trajectory import FinishReason, Trajectory
from motab_jax.rollout.write_subset import decode_subset

PACK_ABOVE = 512  # columns; a shorter tape is packed only when it is full


def rollout(
    student: Model, teacher: Model | None, prompts: Prompts, key: jax.Array, config: RolloutConfig
) -> Trajectory:
    """Trajectories of N prompts. Without a teacher the student generates alone and nothing is scored.

    Pure and jit-able; `key` is a typed PRNG key, folded with each row's id. With config.score_after (and no monitor)
    the teacher is not in the loop and reads the finished rows; the step table then holds no values.
    """
    judge = None if config.teacher_scores_after else teacher
    loop = _Loop(student, judge, prompts, jax.vmap(functools.partial(jax.random.fold_in, key))(prompts.row_ids), config)
    log = jax.lax.while_loop(
        loop.unfinished,
        loop.body,
        begin(student, judge, empty_log(teacher, prompts, config), prompts, config, loop.slots),
    ).log
    if teacher is None or not config.teacher_scores_after:
        return log
    return run_if(loop.listens, lambda finished: score_trajectories(teacher, finished, config), log)


class _Loop:
    """What stays the same through the loop; its methods are the loop's verbs."""

    def __init__(self, student: Model, teacher: Model | None, prompts: Prompts, row_keys, config: RolloutConfig):
        self.student, self.teacher, self.config = student, teacher, config
        self.prompts, self.row_keys = prompts, row_keys
        self.slots = min(config.slots or len(prompts.lengths), len(prompts.lengths))
        self.few = config.backtrack.teacher_rows if config.backtrack.teacher_rows < self.slots else 0
        self.queued = self.slots < len(prompts.lengths)
        self.listens = jnp.array(True) if config.skip_teacher is None else ~config.skip_teacher
        self.intervenes = config.max_rewinds > 0 and teacher is not None

    def row(self, slots: Slots):
        """The rows' index for rollout/rows.py."""
        return slots.row if self.queued else None

    def unfinished(self, state: RolloutState) -> jax.Array:
        """Whether any row still has a writer."""
        return jnp.any(state.rows.phase != DONE)

    def body(self, state: RolloutState) -> RolloutState:
        """One turn: seat who waits, put columns on the tape, have them read, judge, go on."""
        state = self.make_room(self.call(state))
        row = self.row(state.slots)
        turn, part = choose_iteration(state.rows, state.slots, row, state.teaching, state.last, self.few)
        begin = state.tape.cursor
        state, segment, pen = self.write(state, turn, part)
        state, segment = self.read(state, segment, turn, begin)
        state = self.tally(state.replace(last=turn), segment, turn, begin)
        return self.judge(state, segment, pen, turn, part)

    def call(self, state: RolloutState) -> RolloutState:
        """Seat waiting rows, and call the teacher if enough rows wait for it."""
        if self.intervenes:
            threshold = self.config.backtrack.teacher_batch or self.slots
            state = state.replace(teaching=teacher_is_called(state.rows, state.teaching, threshold))
        if not self.queued:
            return state

        def seat(carry):
            rows, slots, tape = carry
            rows, slots, new = refill(rows, slots, state.teaching, self.config.teacher_budget)
            return rows, slots, rewind(tape, jnp.where(new, 0, UNLIMITED))

        waiting = jnp.any(~state.rows.seated & (state.rows.phase != DONE))
        rows, slots, tape = run_if(waiting, seat, (state.rows, state.slots, state.tape))
        return state.replace(rows=rows, slots=slots, tape=tape)

    def make_room(self, state: RolloutState) -> RolloutState:
        """Pack the tape when a segment would not fit, or when most of a long tape is dead."""
        done = phases(state.rows, state.slots, self.row(state.slots)) == DONE
        longest = jnp.max(jnp.where(done, 0, state.slots.position))

        def pack(carry):
            tape, readers = carry
            tape, source = packing(rewind(tape, jnp.where(done, 0, UNLIMITED)))
            return tape, [reader.replace(cache=gather_columns(reader.cache, source)) for reader in readers]

        full = state.tape.cursor + self.config.segment_tokens > state.tape.tokens.shape[1]
        wasteful = state.tape.cursor > 2 * longest + PACK_ABOVE
        readers = [state.student] if state.teacher is None else [state.student, state.teacher]
        tape, readers = run_if(full | wasteful, pack, (state.tape, readers))
        log = state.log.replace(counters=count(state.log.counters, packings=full | wasteful))
        return state.replace(
            tape=tape, student=readers[0], teacher=None if state.teacher is None else readers[1], log=log
        )

    def write(self, state: RolloutState, turn, part) -> tuple[RolloutState, Segment, DecodeState]:
        """Put a segment on the tape: known text, or what the student or the teacher writes."""
        slots, known = state.slots, self._known(state)
        tape, segment = state.tape, empty_segment(self.student, self.teacher, self.config, self.slots)
        taught = turn == TEACHER_WRITES
        pen = DecodeState(part, slots.position, slots.automaton, jnp.where(taught, slots.budget, UNLIMITED))
        tape, pen, segment = append_known(tape, pen.replace(active=part & (turn == READ)), known, segment)
        pen = pen.replace(active=part & (turn == STUDENT_WRITES))
        student, tape, pen, segment = decode_segment(
            self.student, state.student, tape, pen, segment, known, self.config, opine=False
        )
        state = state.replace(student=student)
        if self.intervenes:
            carry = state.teacher, tape, pen.replace(active=part & taught), segment
            teacher, tape, pen, segment = self.teach(carry, known, taught)
            state = state.replace(teacher=teacher)
        return state.replace(tape=tape), segment, pen

    def teach(self, carry, known: SegmentInputs, taught):
        """Have the teacher write a segment, (reader, tape, pen, segment), if it is its turn (taught bool[])."""

        def few(carry):
            return decode_subset(self.teacher, *carry, known, self.config, rows=self.few)

        return (
            run_if(taught, few, carry)
            if self.few
            else decode_segment(self.teacher, *carry, known, self.config, opine=True)
        )

    def _known(self, state: RolloutState) -> SegmentInputs:
        slots, row = state.slots, self.row(state.slots)
        rows = gather_rows(state.rows, row)
        place = slots.position[:, None] + jnp.arange(self.config.segment_tokens, dtype=jnp.int32)[None]
        draw = jax.vmap(uniforms, in_axes=(None, None, 1), out_axes=1)
        return SegmentInputs(
            tokens=jnp.take_along_axis(rows.text, jnp.minimum(place, rows.text.shape[1] - 1), axis=1),
            length=rows.known,
            limit=rows.limit,
            uniforms=draw(
                gather_rows(self.row_keys, row), gather_rows(state.log.num_rewinds, row), place - rows.offset[:, None]
            ),
        )

    def read(self, state: RolloutState, segment: Segment, turn, begin) -> tuple[RolloutState, Segment]:
        """Have the segment read by the models that did not write it; the teacher gives its scores of the student's."""
        phase = phases(state.rows, state.slots, self.row(state.slots))
        compares = segment.mine.shape[-1] > 0
        for_student = (turn == READ) & (jnp.any(phase == STUDENT_WRITES) | self.config.hands_back)
        if self.config.hands_back:
            for_student |= turn == TEACHER_WRITES

        def student_reads(reader: ModelState) -> ModelState:
            return prefill_segment(self.student, reader, state.tape, segment, begin)[0]

        def teacher_reads(carry):
            return prefill_segment(self.teacher, carry[0], state.tape, segment, begin)

        def opine(_):
            return score_hidden(
                self.teacher, hidden, segment.tokens, self.config.monitor, vocab_size=self.config.vocab_size,
                targets_k=self.config.targets_k,
                student=self.student if compares else None, student_hidden=segment.mine if compares else None,
            )  # fmt: skip

        state = state.replace(student=run_if(for_student, student_reads, state.student))
        if self.teacher is None:
            return state, segment
        teacher, hidden = run_if(
            self.listens & (turn != TEACHER_WRITES), teacher_reads, (state.teacher, segment.hidden)
        )
        scores = run_if(self.listens & (turn == STUDENT_WRITES), opine, segment.scores)
        return state.replace(teacher=teacher), segment.replace(hidden=hidden, scores=scores)

    def tally(self, state: RolloutState, segment: Segment, turn, begin) -> RolloutState:
        """Count what the turn did."""
        row = self.row(state.slots)
        decoded = state.tape.cursor - begin
        reread = segment.forced & (phases(state.rows, state.slots, row) == TEACHER_WRITES)[:, None]
        wrote = turn != READ
        counters = count(
            state.log.counters,
            student_iterations=turn == STUDENT_WRITES,
            teacher_iterations=turn == TEACHER_WRITES,
            prefill_iterations=turn == READ,
            student_columns=decoded * self.slots * (turn == STUDENT_WRITES),
            teacher_columns=decoded * (self.few or self.slots) * (turn == TEACHER_WRITES),
            busy_columns=jnp.sum(segment.alive) * wrote,
            tape_columns=state.tape.cursor * self.slots,
            live_columns=jnp.sum(state.tape.positions >= 0),
            teacher_scored=jnp.sum(segment.written) * (self.teacher is not None),
            teacher_reread=jnp.sum(reread) * (self.teacher is not None),
        )
        return state.replace(log=state.log.replace(counters=counters))

    def judge(self, state: RolloutState, segment: Segment, pen: DecodeState, turn, part) -> RolloutState:
        """Enter what was written in the log, judge the student's steps, and say who goes on."""
        config, row = self.config, self.row(state.slots)
        judged = config.monitor.enabled & (turn == STUDENT_WRITES)
        source = jnp.where(turn == TEACHER_WRITES, Source.TEACHER, Source.STUDENT)
        columns = monitor.Columns(
            segment.scores.signal, segment.scores.entropy, segment.written, segment.stop, segment.closes
        )
        open_, steps, accepted, breach = monitor.observe(
            state.slots.open, state.log.steps, columns, gather_rows(state.log.length, row),
            (config.breach_ends_row | (gather_rows(state.log.num_rewinds, row) < config.max_rewinds)) & judged,
            eps0=config.eps0, theta=config.theta, source=source, judged=judged, row=row, spec=config.monitor,
            discard_limit=None if config.breach_ends_row else config.max_discarded,
            may_discard_all=config.backtrack.target == "root",
            discarded=gather_rows(state.log.length - (state.rows.known - state.rows.offset), row),
        )  # fmt: skip
        log = trajectory.extend(
            state.log.replace(steps=steps), segment.tokens, segment.scores, segment.hidden, accepted, source, row
        )
        known = gather_rows(state.rows.known, row)
        text = scatter_windows(state.rows.text, row, known, compact_left(accepted, segment.tokens))
        known = known + jnp.sum(accepted, axis=1, dtype=jnp.int32)
        budget = jnp.where(turn == TEACHER_WRITES, pen.budget, state.slots.budget)
        state = state.replace(
            log=log,
            rows=state.rows.replace(text=text, known=scatter_rows(state.rows.known, row, known)),
            slots=state.slots.replace(position=pen.position, automaton=pen.automaton, budget=budget, open=open_),
        )
        state = self.finish(state, segment, accepted, breach)
        if not self.intervenes:
            return state
        state = run_if(jnp.any(breach), lambda s: self.backtrack(s, breach), state)
        return self.hand_back(state, part & (turn == TEACHER_WRITES)) if config.hands_back else state

    def finish(self, state: RolloutState, segment: Segment, accepted, breach) -> RolloutState:
        """Rows whose writer came to a stop token or to the length limit are done, or whose breach ends them."""
        row = self.row(state.slots)
        stopped = jnp.any(accepted & segment.stop, axis=1)
        full = gather_rows(state.rows.known, row) >= gather_rows(state.rows.limit, row)
        done = jnp.any(accepted, axis=1) & ~breach & (stopped | full)
        reason = jnp.where(
            done, jnp.where(stopped, FinishReason.STOP, FinishReason.LENGTH), gather_rows(state.log.finish, row)
        )
        if self.config.breach_ends_row:
            done, reason = done | breach, jnp.where(breach, FinishReason.MONITOR, reason)
        return state.replace(
            rows=update_rows(state.rows, row, done, phase=DONE),
            log=state.log.replace(finish=scatter_rows(state.log.finish, row, reason)),
        )

    def backtrack(self, state: RolloutState, breach) -> RolloutState:
        """Rewind the rows that strayed to their last safe state, where the teacher gets the word (eq. 8-10).

        The last token that stands leaves the tape as well: reading it once more, the teacher knows what comes next.
        """
        row, slots = self.row(state.slots), state.slots
        steps = gather_rows(state.log.steps, row)
        find_root = functools.partial(monitor.find_root, target=self.config.backtrack.target, spec=self.config.monitor)
        root = jax.vmap(find_root)(steps, slots.open.first)
        first = take_per_row(steps.start, root)
        known = gather_rows(state.rows.known, row) - (gather_rows(state.log.length, row) - first)
        return state.replace(
            tape=rewind(state.tape, jnp.where(breach, known - 1, UNLIMITED)),
            log=trajectory.discard(state.log, breach, root, row),
            rows=update_rows(state.rows, row, breach, known=known, phase=TEACHER_WRITES),
            slots=slots.replace(
                position=jnp.where(breach, known - 1, slots.position),
                automaton=jnp.where(breach, 0, slots.automaton),
                budget=jnp.where(breach, self.config.teacher_budget, slots.budget),
            ),
        )

    def hand_back(self, state: RolloutState, wrote) -> RolloutState:
        """Where the teacher's steps are used up, the student has the word again."""
        row, slots = self.row(state.slots), state.slots
        waits = gather_rows(state.rows.phase, row) == TEACHER_WRITES
        back = wrote & waits & (slots.budget <= 0)
        first = jnp.where(back, gather_rows(state.log.steps.count, row), slots.open.first)
        return state.replace(
            rows=update_rows(state.rows, row, back, phase=STUDENT_WRITES),
            slots=slots.replace(automaton=jnp.where(back, 0, slots.automaton), open=slots.open.replace(first=first)),
        )
