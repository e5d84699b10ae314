"""A folder's lock: one owner at a time, who is named; the lock of one who died is taken over, and that is said."""

import json
import os
import subprocess
import sys
import threading

import pytest

from motab_jax.config import EnvironmentFailure
from motab_jax.runtime.folder_lock import NAME, FolderLock


def write(folder, **changes):
    """A lock as this process would leave it, with changes."""
    with FolderLock(folder):
        held = json.loads((folder / NAME).read_text())
    (folder / NAME).write_text(json.dumps(held | changes))


def test_the_second_is_told_who_holds_it_and_the_third_follows_the_first(tmp_path):
    with FolderLock(tmp_path):
        with pytest.raises(EnvironmentFailure, match=rf"another run .*process {os.getpid()}, since .*run\.name"):
            FolderLock(tmp_path)
    assert not (tmp_path / NAME).exists()
    with FolderLock(tmp_path):
        pass


def test_the_lock_of_a_killed_process_is_taken_over_at_once(tmp_path, capsys):
    program = (
        "import os, pathlib, sys; from motab_jax.runtime.folder_lock import FolderLock\n"
        "FolderLock(pathlib.Path(sys.argv[1])); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert killed.returncode == -9 and (tmp_path / NAME).exists()
    with FolderLock(tmp_path):
        assert json.loads((tmp_path / NAME).read_text())["process"] == os.getpid()
    assert "is taken over" in capsys.readouterr().err


def test_a_process_with_the_number_of_the_dead_one_is_another(tmp_path):
    write(tmp_path, began="another boot 1")
    with FolderLock(tmp_path):
        pass


def test_on_another_host_it_is_left_behind_when_it_does_not_change(tmp_path, capsys):
    write(tmp_path, host="elsewhere")
    with FolderLock(tmp_path, beat=0.1, watch=0.5):
        assert "elsewhere" in capsys.readouterr().err


def test_on_another_host_it_is_held_while_it_changes(tmp_path):
    write(tmp_path, host="elsewhere")
    held, ended = json.loads((tmp_path / NAME).read_text()), threading.Event()

    def beat():
        count = 0
        while not ended.wait(0.1):
            count += 1
            (tmp_path / "new").write_text(json.dumps(held | {"beat": count}))
            os.replace(tmp_path / "new", tmp_path / NAME)

    owner = threading.Thread(target=beat)
    owner.start()
    try:
        with pytest.raises(EnvironmentFailure, match="elsewhere"):
            FolderLock(tmp_path, beat=0.1, watch=20)
    finally:
        ended.set()
        owner.join()


def test_a_lock_that_was_never_written_to_its_end_is_left_behind(tmp_path):
    (tmp_path / NAME).write_text("")
    with FolderLock(tmp_path, beat=0.1, watch=0.3) as lock:
        assert lock.folder == tmp_path
