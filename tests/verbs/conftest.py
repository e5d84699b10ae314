"""One tiny pair and one finished run of it for all tests here; one folder of compiled programs for all processes."""

import os

import jax
import pytest

from tests.verbs.helpers import spawn, words, write_pair


@pytest.fixture(scope="session", autouse=True)
def compiled_programs(tmp_path_factory):
    """Where this process and those it starts keep compiled programs."""
    folder = jax.config.values["jax_compilation_cache_dir"] or str(tmp_path_factory.mktemp("compiled"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", os.environ.get("JAX_COMPILATION_CACHE_DIR", folder))
        yield


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    """The folder of student/ and teacher/; not to be changed."""
    return write_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="session")
def finished(tmp_path_factory, pair):
    """(run folder, process) of a run that was never interrupted; not to be changed."""
    runs = tmp_path_factory.mktemp("runs")
    process = spawn("train", words(pair, runs))
    assert process.returncode == 0, process.stderr
    return runs / "tiny", process
