"""A step's seconds add up, and nothing waits to read them."""

import jax
import jax.numpy as jnp
import pytest

from motab_jax.runtime.clocks import StepClock, Task, now, split
from motab_jax.runtime.compilation import CompileClock


def test_tasks_that_follow_each_other():
    found = split(10.0, [Task("rollout", 10.5, 14.0), Task("update", 11.0, 16.0)])
    assert found == {"idle": 0.5, "compile": 0.0, "rollout": 3.5, "update": 2.0}


def test_a_device_that_waits():
    """Asked for late: idle. Compiled meanwhile: not idle. Compiled beside another's run: more than the wall time."""
    late = split(0.0, [Task("rollout", 1.0, 2.0), Task("update", 5.0, 6.0, compiled=2.0)])
    assert late == {"idle": 2.0, "compile": 2.0, "rollout": 1.0, "update": 1.0}
    beside = split(0.0, [Task("rollout", 0.0, 4.0), Task("update", 3.0, 5.0, compiled=3.0)])
    assert beside == {"idle": 0.0, "compile": 3.0, "rollout": 4.0, "update": 1.0}


def test_a_task_that_was_over_before_it_was_noted():
    assert split(0.0, [Task("relayout", 1.0, 0.5)])["relayout"] == 0.0


def slow(size):
    return jax.lax.fori_loop(0, 60, lambda _, x: jnp.tanh(x @ x), size)


def test_the_clock_does_not_wait_and_adds_up():
    program, x = jax.jit(slow), jnp.full((300, 300), 1e-3)
    jax.block_until_ready(program(x))
    with CompileClock() as compiling, StepClock(compiling) as clock:
        started = now()
        y = program(x)
        clock.asked("one", y)
        z = program(y)
        clock.asked("two", z)
        went_on = now() - started
        seconds, elapsed = clock.read()
        took = now() - started
        assert went_on < took / 2, "asking returned while the device worked"
        assert set(seconds) == {"one", "two", "idle", "compile"} and seconds["compile"] == 0
        assert sum(seconds.values()) == pytest.approx(elapsed, abs=1e-6) and elapsed <= took + 0.1
        clock.asked("late", program(z))
        seconds, elapsed = clock.read()
        assert sum(seconds.values()) == pytest.approx(elapsed, abs=1e-6), "from where the last reading ended"


def test_what_a_program_raises_is_raised():
    x = jnp.ones(3)
    with CompileClock() as compiling, StepClock(compiling) as clock:
        x.delete()
        clock.asked("gone", x)
        with pytest.raises(RuntimeError, match="deleted"):
            clock.read()
