"""What the launch files ask of the clouds' programs, word for word; what they tell a TPU VM is run here as well."""

import os
import shutil
import subprocess
import tarfile

import pytest

from tests.launch.stubs import LAUNCH, the_command

WORDS = ["recipes/mine.yaml", "run.seed=1", "data.fields={prompt: it's}"]
TPU = ["gcloud", "compute", "tpus", "tpu-vm"]
QUEUE = ["gcloud", "compute", "tpus", "queued-resources"]
WHERE = ["--zone=z", "--project=p"]
VARIABLES = {"NAME": "pod", "ZONE": "z", "PROJECT": "p", "NFS": "10.0.0.2:/runs"}

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
def vm(stubs, tmp_path):
    """A checkout with one file committed, one not and one ignored, and the VM's folder; run(...) starts tpu_vm.sh."""
    checkout, home = tmp_path / "checkout", tmp_path / "vm"
    shutil.copytree(LAUNCH, checkout / "launch")
    for name, text in {"committed.txt": "", ".gitignore": ".venv/\n", ".venv/big": "", WORDS[0]: ""}.items():
        (checkout / name).parent.mkdir(exist_ok=True)
        (checkout / name).write_text(text)
    for words in (["init", "--quiet"], ["add", "committed.txt"]):
        subprocess.run(["git", *words], cwd=checkout, check=True)
    (home / ".local" / "bin").mkdir(parents=True)
    for name, behaviour in {"gcloud": GCLOUD, "systemctl": SYSTEMCTL, "mountpoint": "sys.exit(1)", "sudo": ""}.items():
        stubs.add(name, behaviour)
    stubs.add("uv").rename(home / ".local" / "bin" / "uv")

    def run(**variables):
        given = {**VARIABLES, "THERE": "yes", "STATE": "inactive", "STATUS": "0", **variables, "VM": str(home)}
        return stubs.run(["bash", "launch/tpu_vm.sh", *WORDS], checkout, **given)

    return run


def on_vm(calls):
    """The calls less gcloud's own."""
    return [call for call in calls if call[0] != "gcloud"]


def test_a_tpu_vm_gets_the_checkout_installs_it_and_starts_the_run_as_a_unit(vm, stubs, tmp_path):
    said = vm()
    assert said.returncode == 0, said.stderr
    home, ids = tmp_path / "vm", [f"--uid={os.getuid()}", f"--gid={os.getgid()}"]
    with tarfile.open(home / "motab.tgz") as archive:
        names = {name for name in archive.getnames() if not name.startswith("launch")}
    assert names == {"committed.txt", ".gitignore", "recipes", WORDS[0]}, "what git ignores stays"
    assert (home / "motab" / WORDS[0]).is_file(), "unpacked"
    assert on_vm(stubs.calls()) == [
        ["systemctl", "is-active", "--quiet", "motab"],
        ["mountpoint", "-q", "/runs"],
        ["sudo", "apt-get", "install", "-qq", "-y", "nfs-common"],
        ["sudo", "mkdir", "-p", "/runs"],
        ["sudo", "mount", "-t", "nfs", "10.0.0.2:/runs", "/runs"],
        ["uv", "venv", "--quiet", "--python", "3.12", ".venv"],
        ["uv", "pip", "install", "--quiet", "--python", ".venv/bin/python", ".[tpu,data]"],
        ["systemctl", "is-active", "--quiet", "motab"],
        ["sudo", "systemctl", "reset-failed", "motab"],
        [
            *("sudo", "systemd-run", "--quiet", "--unit=motab", *ids, f"--working-directory={home}/motab"),
            *(f"--setenv=HOME={home}", "--setenv=HF_HOME=/runs/huggingface", "--property=LimitMEMLOCK=infinity"),
            *("--property=KillMode=mixed", "--property=TimeoutStopSec=600"),
            *(f"{home}/motab/.venv/bin/python", "-m", "motab_jax.train", "run.dir=/runs", *WORDS),
        ],
        ["systemctl", "is-active", "motab"],
        ["systemctl", "show", "motab", "--property=ExecMainStatus", "--value"],
    ]
    asked = [call for call in stubs.calls() if call[0] == "gcloud"]
    assert asked[0] == [*TPU, "describe", "pod", *WHERE]
    assert asked[1][:4] == TPU and asked[1][4] == "scp" and asked[1][6:] == ["pod:motab.tgz", *WHERE, "--worker=all"]
    assert [call[:-1] for call in asked[2:]] == 3 * [[*TPU, "ssh", "pod", *WHERE, "--worker=all"]]


def test_a_tpu_vm_is_made_where_there_is_none(vm, stubs):
    assert vm(THERE="no", SPOT="1", PROJECT="").returncode == 0
    assert stubs.calls()[1] == [
        *(*TPU, "create", "pod", "--zone=z", "--spot"),
        *("--accelerator-type=v5litepod-16", "--version=v2-alpha-tpuv5-lite"),
    ]


def test_the_status_is_that_of_the_run(vm):
    assert vm(STATUS="75").returncode == 75


def test_a_run_on_its_way_is_left_alone(vm, stubs):
    said = vm(STATE="active")
    assert said.returncode == 2 and "a run is on its way on pod" in said.stderr
    assert on_vm(stubs.calls()) == [["systemctl", "is-active", "--quiet", "motab"]]


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
    create = [
        *(*QUEUE, "create", "pod", *WHERE, "--node-id=pod", "--spot"),
        *("--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite"),
    ]
    known = {
        "create": create,
        "delete": [*QUEUE, "delete", "pod", *WHERE, "--force", "--quiet"],
        "run": ["run", *WORDS],
    }
    assert [call for call in stubs.calls() if "describe" not in call] == [known[word] for word in asked]
    questions = [call for call in stubs.calls() if call[:5] == [*QUEUE, "describe"]]
    assert questions[0] == [*QUEUE, "describe", "pod", *WHERE, "--format=value(state.state)"]
    assert "".join((tmp_path / kind).read_text() for kind in ("queued-resources", "tpu-vm", "run")) == "", "all asked"


@pytest.mark.parametrize(
    ("file", "call"),
    [
        ("gke_jobset.yaml", ["kubectl", "apply", "-f", "launch/gke_jobset.yaml"]),
        ("slurm.sbatch", ["sbatch", "launch/slurm.sbatch", "CONFIG.yaml"]),
        (
            "sky.yaml",
            ["sky", "jobs", "launch", "-n", "motab", "--env", "ARGS=configs/qwen3_32b_to_4b.yaml", "launch/sky.yaml"],
        ),
        ("Dockerfile", ["docker", "build", "-t", "IMAGE", "-f", "launch/Dockerfile", "-"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_header_gives_the_command(file, call, stubs):
    stubs.add(call[0])
    stubs.add("git")
    words = the_command(LAUNCH / file).replace(" [key=value ...]", "")
    assert stubs.run(["bash", "-c", words]).returncode == 0
    assert next(made for made in stubs.calls() if made[0] != "git") == call
