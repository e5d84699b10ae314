"""The folder of compiled programs is private or not used; the clock counts each second once."""

import os
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motab_jax.runtime.compilation import CompileClock, enable_compilation_cache


@pytest.fixture
def settings(monkeypatch, tmp_path):
    """The caller's cache in tmp_path, jax's settings put back afterwards."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: jax.config.values[name] for name in names}
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield tmp_path / "cache"
    for name, value in before.items():
        jax.config.update(name, value)


def test_the_folder_is_private(settings):
    folder = enable_compilation_cache()
    assert folder is not None
    assert folder == settings / "motab_jax" / "xla" and jax.config.values["jax_compilation_cache_dir"] == str(folder)
    assert [path.stat().st_mode & 0o777 for path in (folder, folder.parent)] == [0o700, 0o700]
    folder.chmod(0o777)
    assert enable_compilation_cache() == folder and folder.stat().st_mode & 0o777 == 0o700, "made private again"


@pytest.mark.parametrize("part", ["motab_jax", "motab_jax/xla"])
def test_a_folder_that_is_not_ours_is_not_used(settings, monkeypatch, tmp_path, part):
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "xla").mkdir(parents=True)
    (settings / part).parent.mkdir(parents=True)
    (settings / part).symlink_to(elsewhere)
    assert enable_compilation_cache() is None, "a link may be another user's"
    (settings / part).unlink()
    assert enable_compilation_cache() is not None
    monkeypatch.setattr(os, "getuid", lambda: settings.stat().st_uid + 1)
    assert enable_compilation_cache() is None


def test_without_a_folder_nothing_is_kept(settings):
    settings.write_text("a file where the cache should be")
    assert enable_compilation_cache() is None


def test_the_named_folder_is_the_users_own_affair(settings, monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "named"))
    assert enable_compilation_cache() == tmp_path / "named" and not settings.exists()


def test_the_clock_counts_programs_and_seconds():
    with CompileClock() as clock:
        jax.jit(lambda x: x + 1)(jnp.ones(3)).block_until_ready()
        first = clock.read()
        assert first.programs >= 1 and first.seconds > 0
        started = time.perf_counter()
        inner = jax.jit(lambda x: jnp.sin(x) * 2)
        jax.jit(lambda x: inner(x) + inner(x + 1))(jnp.ones(3)).block_until_ready()
        assert clock.read().seconds - first.seconds <= time.perf_counter() - started
    after = clock.read()
    jax.jit(lambda x: x + 2)(jnp.ones(3)).block_until_ready()
    assert clock.read() == after, "the clock has ended"


def test_compilations_of_a_function(devices):
    """A shape or a sharding that is new compiles a program; another array of the same does not."""

    def double(x):
        return 2 * x

    program, x = jax.jit(double), jnp.ones(3)
    with CompileClock() as clock:
        assert clock.compilations(program) == 0
        for _ in range(2):
            program(x)
        program(np.ones(3, np.float32))
        assert clock.compilations(program) == 1
        program(jnp.ones(4))
        program(jax.device_put(x, devices[3]))
        assert clock.compilations(program) == 3
        jax.jit(lambda x: x)(x)
        assert clock.compilations(program) == 3


def test_a_span_within_another_counts_once():
    with CompileClock() as clock:
        for start, end in ((0.0, 1.0), (2.0, 3.0), (3.5, 4.0), (1.5, 5.0), (6.0, 7.0)):
            jax.monitoring.record_event_time_span("/jax/core/compile/jaxpr_trace_duration", start, end)
        assert clock.read().seconds == pytest.approx(1.0 + 3.5 + 1.0)


PROGRAM = """
import jax, jax.numpy as jnp
from motab_jax.runtime import compilation
compilation.KEEP_SECONDS = 0.0
compilation.enable_compilation_cache()
with compilation.CompileClock() as clock:
    jax.jit(lambda x: jnp.cumsum(jnp.sin(x) @ x))(jnp.ones((4, 4))).block_until_ready()
print(clock.read().programs, clock.read().cached)
"""


def test_a_second_process_takes_programs_from_the_folder(settings):
    found = [
        subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120, check=True).stdout
        for _ in range(2)
    ]
    (programs, cached), again = (tuple(map(int, text.split())) for text in found)
    assert cached == 0 and again == (programs, programs)


def test_numerics_are_set_before_a_device_is_used():
    """In a process of its own: the flag is one that XLA knows, or the process would end."""
    code = (
        "import os; from motab_jax.runtime.compilation import set_numerics as set; "
        "set('highest', deterministic=False); assert 'deterministic' not in os.environ.get('XLA_FLAGS', ''); "
        "[set('highest', deterministic=True) for _ in range(2)]; import jax; x = jax.numpy.ones((2, 2)); "
        "print(os.environ['XLA_FLAGS'].count('xla_gpu_deterministic_ops=true'), jax.make_jaxpr(lambda x: x @ x)(x))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1 ") and "Precision.HIGHEST" in done.stdout
