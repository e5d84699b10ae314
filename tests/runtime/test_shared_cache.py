"""Two processes and a hub that counts its downloads."""

import os
import subprocess
import sys

import pytest

from tests.runtime.test_distributed import NAMES, free_address

TWO = """
import os, sys, time
import huggingface_hub
from motab_jax.config import UserError
from motab_jax.runtime.distributed import initialize
from motab_jax.runtime.shared_cache import download_once

log, number = sys.argv[1], os.environ["JAX_PROCESS_ID"]

def download(name, allow_patterns, **_):
    with open(log, "a") as file:
        print("begin", number, name, *allow_patterns, file=file)
    time.sleep(0.5)
    with open(log, "a") as file:
        print("end", number, name, file=file)
    if name == "nobody/nothing":
        raise OSError("no such model")
    return "."

huggingface_hub.snapshot_download = download
initialize()
download_once([("/a/folder", ["*"]), ("gs://bucket/model", ["*"])], 60)
download_once([("nobody/nothing", ["*.json"]), ("owner/model", ["*.json"])], 60)
with open(log, "a") as file:
    print("read", number, file=file)
"""


@pytest.mark.long
@pytest.mark.parametrize("shared", [True, False])
def test_a_cache_is_filled_by_one_process_while_who_shares_it_waits(shared, tmp_path):
    common = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    log, address, runs = tmp_path / "log", free_address(), []
    for index in range(2):
        cache = tmp_path / ("cache" if shared else f"cache{index}")
        env = {**common, **dict(zip(NAMES, (address, "2", str(index)), strict=True)), "HF_HUB_CACHE": str(cache)}
        runs.append(subprocess.Popen([sys.executable, "-c", TWO, str(log)], env=env, stderr=subprocess.PIPE, text=True))
    try:
        said = [run.communicate(timeout=120)[1] for run in runs]
    finally:
        for run in runs:
            run.kill()
    assert [run.returncode for run in runs] == [0, 0], said
    lines = log.read_text().splitlines()
    begun = [line.split()[1:] for line in lines if line.startswith("begin")]
    each = [["nobody/nothing", "*.json"], ["owner/model", "*.json"]]
    assert sorted(begun) == [[str(n), *one] for n in range(1 if shared else 2) for one in each]
    assert [line.split()[0] for line in lines[-2:]] == ["read", "read"], "nobody reads before all is there"
    assert not list(tmp_path.glob("cache*/.motab*"))
