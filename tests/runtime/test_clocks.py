"""A step's seconds add up, and noting a task does not wait for the device."""

import threading

import jax
import jax.numpy as jnp
import pytest

from motab_jax.runtime.clocks import StepClock, Task, now, task_seconds
from motab_jax.runtime.compilation import CompileClock


def test_tasks_that_follow_each_other():
    seconds = task_seconds(10.0, [Task("rollout", 10.5, 14.0), Task("update", 11.0, 16.0)])
    assert seconds == {"idle": 0.5, "compile": 0.0, "rollout": 3.5, "update": 2.0}


def test_a_device_that_waits():
    """Dispatched late: idle. Compiled meanwhile: not idle. Compiled while another runs: more than the wall time."""
    late = task_seconds(0.0, [Task("rollout", 1.0, 2.0), Task("update", 5.0, 6.0, 2.0)])
    assert late == {"idle": 2.0, "compile": 2.0, "rollout": 1.0, "update": 1.0}
    overlapping = task_seconds(0.0, [Task("rollout", 0.0, 4.0), Task("update", 3.0, 5.0, 3.0)])
    assert overlapping == {"idle": 0.0, "compile": 3.0, "rollout": 4.0, "update": 1.0}


def test_a_task_that_was_over_before_it_was_noted():
    assert task_seconds(0.0, [Task("relayout", 1.0, 0.5)])["relayout"] == 0.0


class Result:
    """Stands for an array that is not ready before it is released."""

    def __init__(self):
        self.release = threading.Event()
        self.released_in_time = None

    def block_until_ready(self):
        self.released_in_time = self.release.wait(60)


def test_noting_a_task_does_not_wait_for_it():
    one, two = Result(), Result()
    with CompileClock() as compile_clock, StepClock(compile_clock) as clock:
        clock.record("one", one)
        clock.record("two", {"loss": two})
        one.release.set()
        two.release.set()
        seconds, _ = clock.read()
    assert one.released_in_time and two.released_in_time, "record waited until the results gave up"
    assert set(seconds) == {"one", "two", "idle", "compile"}


def test_seconds_add_up():
    program, x = jax.jit(lambda x: jax.lax.fori_loop(0, 60, lambda _, x: jnp.tanh(x @ x), x)), jnp.full((99, 99), 1e-3)
    jax.block_until_ready(program(x))
    with CompileClock() as compile_clock:
        started = now()
        with StepClock(compile_clock) as clock:
            y = program(x)
            clock.record("one", y)
            clock.record("two", program(y))
            seconds, elapsed = clock.read()
            assert seconds["compile"] == 0 and elapsed <= now() - started
            assert sum(seconds.values()) == pytest.approx(elapsed, abs=1e-6)
            clock.record("late", program(y))
            seconds, elapsed = clock.read()
            assert sum(seconds.values()) == pytest.approx(elapsed, abs=1e-6), "from the end of the last reading"


def test_what_a_program_raises_is_raised():
    x = jnp.ones(3)
    with CompileClock() as compile_clock, StepClock(compile_clock) as clock:
        x.delete()
        clock.record("gone", x)
        with pytest.raises(RuntimeError, match="deleted"):
            clock.read()
