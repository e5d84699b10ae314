"""What the launch files ask of the clouds' programs, and what they make a TPU VM do, which is run here."""

import os
import shutil
import subprocess

import pytest

from tests.launch.stubs import LAUNCH, options, the_command

WORDS = ["recipes/mine.yaml", "run.seed=1", "data.fields={prompt: it's}"]
VARIABLES = {"NAME": "pod", "ZONE": "z", "PROJECT": "p", "RUNS": "10.0.0.2:/runs"}
RUN = ["-m", "motab_jax.train", "run.dir=/runs", "run.start_seconds=1800", *WORDS]

# The VM is a folder: what is copied to it lands there, and what it is told runs there.
GCLOUD = """
there, home = os.environ["THERE"], os.environ["VM"]
if "describe" in words:
    sys.exit(0 if there == "yes" else 1)
if "scp" in words:
    subprocess.run(["cp", words[4], os.path.join(home, words[5].partition(":")[2])], check=True)
if "ssh" in words:
    told = [word for word in words if word.startswith("--command=")][0].removeprefix("--command=")
    sys.exit(subprocess.run(["bash", "-c", told], cwd=home, env={**os.environ, "HOME": home}).returncode)
"""
SYSTEMCTL = """
if words[0] == "is-active":
    print(os.environ["STATE"])
    sys.exit(0 if os.environ["STATE"] == "active" else 3)
if words[0] == "show":
    print(os.environ["STATUS"])
"""


@pytest.fixture
def vm(host, stubs, tmp_path):
    """A checkout with files committed, not committed and ignored, and an empty VM; run(...) starts tpu_vm.sh."""
    home = tmp_path / "vm"
    home.mkdir()
    for name, text in {"committed.txt": "", ".gitignore": ".venv/\n", ".venv/big": "", WORDS[0]: ""}.items():
        (host / name).parent.mkdir(exist_ok=True)
        (host / name).write_text(text)
    for words in (["init", "--quiet"], ["add", "committed.txt"]):
        subprocess.run(["git", *words], cwd=host, check=True)
    for name, behaviour in {"gcloud": GCLOUD, "systemctl": SYSTEMCTL, "mountpoint": "sys.exit(1)", "sudo": ""}.items():
        stubs.add(name, behaviour)

    def run(**variables):
        given = {**VARIABLES, "THERE": "yes", "STATE": "inactive", "STATUS": "0", **variables, "VM": str(home)}
        return stubs.run(["bash", "launch/tpu_vm.sh", *WORDS], host, **given)

    return run


def test_a_tpu_vm_gets_the_checkout_installs_a_lock_and_starts_the_run_as_a_unit(vm, stubs, tmp_path):
    said = vm()
    assert said.returncode == 0, said.stderr
    home = tmp_path / "vm" / "motab"
    assert (home / WORDS[0]).is_file() and (home / "committed.txt").is_file()
    assert not (home / ".venv" / "big").exists(), "what git ignores stays"
    calls = stubs.calls()
    assert [call[-1] for call in calls if "--require-hashes" in call] == ["requirements/tpu.txt"]
    [mount] = [call for call in calls if call[:2] == ["sudo", "mount"]]
    assert mount[-2:] == [VARIABLES["RUNS"], "/runs"]
    [unit] = [call for call in calls if "systemd-run" in call]
    assert unit[-1 - len(RUN) :] == [f"{home}/.venv/bin/python", *RUN]
    assert {"--unit=motab", f"--uid={os.getuid()}", "--setenv=HF_HOME=/runs/huggingface"} <= set(unit)
    assert "--property=TimeoutStopSec=600" in unit, "time for a step and a save"
    for call in calls:
        if call[0] == "gcloud":
            assert options(call).items() >= {"--zone": "z", "--project": "p"}.items()
            assert "pod" in call or "pod:motab.tgz" in call
            assert "describe" in call or options(call)["--worker"] == "all"


def test_with_a_bucket_nothing_is_mounted_and_downloads_stay_on_their_host(vm, stubs, host):
    (host / "requirements" / "gcs.txt").touch()
    said = vm(RUNS="gs://b/my runs")
    assert said.returncode == 0, said.stderr
    calls = stubs.calls()
    locks = [call[-1] for call in calls if "--require-hashes" in call]
    assert locks == ["requirements/tpu.txt", "requirements/gcs.txt"]
    [unit] = [call for call in calls if "systemd-run" in call]
    assert "run.dir=gs://b/my runs" in unit and unit[-len(WORDS) :] == WORDS
    assert not [word for word in unit if "HF_HOME" in word] and not [call for call in calls if "mount" in call]


def test_the_old_name_of_a_share_still_works(vm, stubs):
    assert vm(RUNS="", NFS="10.0.0.2:/runs").returncode == 0
    assert [call[-2:] for call in stubs.calls() if call[:2] == ["sudo", "mount"]] == [["10.0.0.2:/runs", "/runs"]]


@pytest.mark.parametrize("runs", ["s3://b/runs", "gs://", "runs", "/runs"])
def test_what_keeps_no_runs_is_refused_before_anything_is_made(runs, vm, stubs):
    said = vm(RUNS=runs)
    assert said.returncode == 2 and f"error: RUNS={runs} is neither" in said.stderr
    assert stubs.calls() == []


def test_a_tpu_vm_is_made_where_there_is_none(vm, stubs):
    assert vm(THERE="no", SPOT="1", PROJECT="").returncode == 0
    [create] = [call for call in stubs.calls() if "create" in call]
    made = {"--zone": "z", "--spot": "", "--accelerator-type": "v5litepod-16", "--version": "v2-alpha-tpuv5-lite"}
    assert options(create) == made and "pod" in create


def test_the_status_is_that_of_the_run(vm):
    assert vm(STATUS="75").returncode == 75


def test_a_run_in_progress_is_left_alone(vm, stubs):
    said = vm(STATE="active")
    assert said.returncode == 2 and "stop it first" in said.stderr
    assert not [call for call in stubs.calls() if call[0] in ("sudo", "python3")]


# The answers come from files, one a line, so that each question takes the next.
QUEUE_OF_ANSWERS = """
def answer(kind):
    path = os.path.join(os.environ["ANSWERS"], kind)
    first, *rest = open(path).read().split("\\n")
    open(path, "w").write("\\n".join(rest))
    return first
if "describe" in words and any(word.startswith("--format") for word in words):
    print(answer(words[2]))
"""


@pytest.mark.parametrize(
    ("requests", "vms", "runs", "status", "asked"),
    [
        (["", "WAITING_FOR_RESOURCES", "ACTIVE"], ["READY"], ["0"], 0, ["create", "run"]),
        (["ACTIVE", "ACTIVE"], ["CREATING", "READY"], ["0"], 0, ["run"]),
        (
            ["ACTIVE", "SUSPENDING", "SUSPENDED", "", "ACTIVE"], ["READY", "", "READY"], ["255", "0"], 0,
            ["run", "delete", "create", "run"],
        ),
        (["ACTIVE"], ["READY", "READY"], ["1"], 1, ["run"]),
        (["ACTIVE"], ["READY", "READY"], ["75"], 75, ["run"]),
        (["ACTIVE"], ["READY"], ["2"], 2, ["run"]),
        (["FAILED"], [], [], 1, []),
    ],
    ids=["waits", "vm-comes-later", "taken-away", "fails", "stopped", "mistake", "refused"],
)  # fmt: skip
def test_a_queued_resource_is_asked_for_until_the_run_ends(requests, vms, runs, status, asked, stubs, tmp_path):
    shutil.copytree(LAUNCH, tmp_path / "launch")
    for kind, answers in {"queued-resources": requests, "tpu-vm": vms, "run": runs}.items():
        (tmp_path / kind).write_text("\n".join(answers))
    stubs.add("gcloud", QUEUE_OF_ANSWERS)
    stubs.add("run", QUEUE_OF_ANSWERS + "sys.exit(int(answer('run')))\n")
    (tmp_path / "launch" / "tpu_vm.sh").write_text('exec run "$@"\n')
    given = {**VARIABLES, "SPOT": "1", "POLL": "0", "ANSWERS": str(tmp_path)}
    said = stubs.run(["bash", "launch/queued_resource.sh", *WORDS], tmp_path, **given)
    assert said.returncode == status, said.stderr
    calls, made = {"create": [], "delete": [], "run": []}, []
    for call in stubs.calls():
        for verb in calls.keys() & set(call):
            calls[verb].append(call)
            made.append(verb)
    assert made == asked
    for call in calls["create"]:
        vm = {"--accelerator-type": "v5litepod-16", "--runtime-version": "v2-alpha-tpuv5-lite", "--node-id": "pod"}
        assert options(call) == {"--zone": "z", "--project": "p", "--spot": "", **vm}
    assert all({"pod", "--force", "--quiet", "--zone=z"} <= set(call) for call in calls["delete"])
    assert all(call[1:] == WORDS for call in calls["run"])
    assert "".join((tmp_path / kind).read_text() for kind in ("queued-resources", "tpu-vm", "run")) == "", "all asked"


@pytest.mark.parametrize(
    ("file", "tool"),
    [("gke_jobset.yaml", "kubectl"), ("slurm.sbatch", "sbatch"), ("sky.yaml", "sky"), ("Dockerfile", "docker")],
)
def test_the_command_in_its_comment_hands_the_file_to_the_tool(file, tool, stubs):
    for name in (tool, "git"):
        stubs.add(name)
    words = the_command(LAUNCH / file).replace(" [key=value ...]", "")
    assert stubs.run(["bash", "-c", words]).returncode == 0
    assert any(call[0] == tool and f"launch/{file}" in call for call in stubs.calls())
