"""The launch scripts: what they run, with small scripts for the schedulers.

No cluster is at hand. `srun`, `scontrol`, `gcloud` and, where nothing is to be
trained, `python` are stubs on PATH that note how they were called.
"""

import json
import os
from pathlib import Path
import signal
import socket
import subprocess
import sys
import time

import pytest
import yaml

_ROOT = Path(__file__).parents[2]
_LAUNCH = _ROOT / "launch"
_SCRIPTS = ("local.sh", "slurm.sbatch", "tpu_vm.sh")
_SMOKE = (
  "--config=configs/digits_manual.py:smoke",
  "--config.privacy.insecure_noise_seed=3",
  "--config.train.steps=100",
)

# Writes its name and its arguments, one a line. Not by bash's own printf, which
# writes line by line: others may write, too.
_NOTE = """#!/usr/bin/env bash
env printf '%s\\n' "[{name}]" "$@" >>"$NOTES"
{then}
"""
_RUN_TASKS = r"""
while [[ $1 == --* ]]; do shift; done
code=0
for ((task = 0; task < SLURM_NTASKS; task++)); do
  SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_STEP_NODELIST=localhost \
    SLURM_STEP_NUM_NODES=1 "$@" &
  echo $! >>"$NOTES.pids"
done
for pid in $(cat "$NOTES.pids"); do
  result=0
  wait "$pid" || result=$?
  ((result > code)) && code=$result
done
rm "$NOTES.pids"
exit "$code"
"""
# The answers to `describe` are lines of a file, the last one for good.
_CLOUD = r"""
case "$*" in
  *"queued-resources describe"*)
    head -n 1 states
    [[ $(wc -l <states) == 1 ]] || sed -i 1d states ;;
  *"tpu-vm ssh"*)
    for last; do :; done
    cd "$WORKER" && bash -c "${last#--command=}" ;;
  *"tpu-vm scp"*) cp "$5" "$WORKER/${6#*:}" ;;
esac
"""


class _Machine:
  """A folder with stubs, and what they were called with."""

  def __init__(self, folder: Path):
    self.folder = folder
    self.notes = folder / "notes"
    (folder / "bin").mkdir()
    self.environment = {
      "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
      "HOME": str(folder),
      "NOTES": str(self.notes),
    }

  def stub(self, name: str, then: str = "") -> None:
    path = self.folder / "bin" / name
    path.write_text(_NOTE.format(name=name, then=then))
    path.chmod(0o755)

  def start(self, script: str, *flags: str, **environment: str):
    return subprocess.Popen(
      # Ctrl-C may be ignored where the tests run in the background.
      ["env", "--default-signal=INT", "bash", _LAUNCH / script, *flags],
      cwd=self.folder,
      env=self.environment | environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )

  def run(self, script: str, *flags: str, **environment: str) -> int:
    process = self.start(script, *flags, **environment)
    self.out, self.err = process.communicate(timeout=300)
    return process.returncode

  def calls(self, name: str) -> list[list[str]]:
    found = []
    for call in self.notes.read_text().split("[")[1:]:
      called, *arguments = call.splitlines()
      if called == f"{name}]":
        found.append(arguments)
    return found


@pytest.fixture
def machine(tmp_path):
  return _Machine(tmp_path)


def _container() -> dict:
  jobset = yaml.safe_load((_LAUNCH / "gke_jobset.yaml").read_text())
  [job] = jobset["spec"]["replicatedJobs"]
  [container] = job["template"]["spec"]["template"]["spec"]["containers"]
  return container


@pytest.mark.parametrize("script", _SCRIPTS)
def test_shellcheck_finds_nothing(script):
  shellcheck = Path(sys.executable).with_name("shellcheck")
  subprocess.run(["bash", "-n", _LAUNCH / script], check=True)
  subprocess.run([shellcheck, _LAUNCH / script], check=True)


@pytest.mark.parametrize("script", (*_SCRIPTS, "Dockerfile", "gke_jobset.yaml"))
def test_all_end_in_the_same_command(script):
  text = (_LAUNCH / script).read_text()
  ends = (
    'python -m ecos_jax.train "$@"',
    # On another machine; "$@" in the words of a shell there.
    "python -m ecos_jax.train ${*@Q}",
    '["python", "-m", "ecos_jax.train"]',
    "[python, -m, ecos_jax.train]",
  )
  assert sum(text.count(end) for end in ends) == 1


def test_local_runs_one_process_by_itself(machine):
  machine.stub("python", "exit 3")
  assert machine.run("local.sh", "--a=b c", "--d") == 3
  assert machine.calls("python") == [["-m", "ecos_jax.train", "--a=b c", "--d"]]


def test_local_restarts_what_was_killed_and_no_error(machine):
  train = "[[ $1 == -c ]] && echo 1234 && exit; exit $CODE"
  machine.stub("python", train)
  for code, rounds in ((0, 1), (1, 1), (130, 1), (75, 3), (137, 3)):
    machine.notes.unlink(missing_ok=True)
    environment = {"PROCESSES": "2", "RESTARTS": "2", "CODE": str(code)}
    environment["CUDA_VISIBLE_DEVICES"] = "4,5"
    assert machine.run("local.sh", **environment) == code
    calls = [call for call in machine.calls("python") if call[0] == "-m"]
    assert len(calls) == 2 * rounds
    assert {tuple(call[2:]) for call in calls} == {
      ("--coordinator=localhost:1234", "--num_processes=2", "--process_id=0"),
      ("--coordinator=localhost:1234", "--num_processes=2", "--process_id=1"),
    }


def test_each_local_process_has_a_gpu_of_its_own(machine):
  machine.stub("python", 'echo "gpu $CUDA_VISIBLE_DEVICES"')
  assert machine.run("local.sh", PROCESSES="2") == 0
  assert sorted(machine.out.splitlines()) == ["gpu 0", "gpu 1"]


@pytest.mark.parametrize(
  "number, code", [(signal.SIGTERM, 75), (signal.SIGINT, 130)]
)
def test_local_passes_signals_on(number, code, machine):
  machine.stub(
    "python",
    "[[ $1 == -c ]] && echo 1234 && exit\n"
    "trap 'exit 75' TERM; trap 'exit 130' INT; echo ready\n"
    "for ((i = 0; i < 200; i++)); do sleep 0.1; done",
  )
  process = machine.start("local.sh", PROCESSES="2", RESTARTS="2")
  assert process.stdout.readline() == process.stdout.readline() == "ready\n"
  process.send_signal(number)
  _, err = process.communicate(timeout=10)
  assert process.returncode == code, err
  assert "started again" not in err


def _slurm(**environment: str) -> dict[str, str]:
  return {"SLURM_JOB_ID": "812", "SLURM_NTASKS": "2"} | environment


@pytest.mark.parametrize("code, requeued", [(0, []), (1, []), (75, [1])])
def test_slurm_requeues_what_was_told_to_stop(code, requeued, machine):
  machine.stub("srun", f"exit {code}")
  machine.stub("scontrol")
  environment = _slurm(
    WORKDIR="/shared/my runs", SLURM_ARRAY_TASK_ID="7", SLURM_CPUS_PER_TASK="8"
  )
  assert machine.run("slurm.sbatch", "--config=c.py", **environment) == code
  assert machine.calls("srun") == [
    [
      "--gpu-bind=none",
      "--kill-on-bad-exit=0",
      "--cpus-per-task=8",
      "python",
      "-m",
      "ecos_jax.train",
      "--coordinator=auto",
      "--workdir=/shared/my runs/seed-7",
      "--config=c.py",
      "--config.seed=7",
    ]
  ]
  assert machine.calls("scontrol") == [["requeue", "812"] for _ in requeued]


def test_slurm_options():
  lines = (_LAUNCH / "slurm.sbatch").read_text().splitlines()
  options = dict(
    line.removeprefix("#SBATCH --").partition("=")[::2]
    for line in lines
    if line.startswith("#SBATCH ")
  )
  assert options["gpus-per-node"] == options["ntasks-per-node"]
  assert options["signal"] == "TERM@120"
  assert "requeue" in options and "array" in options
  # sbatch reads options up to the first command.
  last = max(i for i, line in enumerate(lines) if line.startswith("#SBATCH"))
  assert all(line.startswith("#") for line in lines[:last])


def test_slurm_needs_a_workdir(machine):
  assert machine.run("slurm.sbatch", **_slurm()) == 1
  assert "set WORKDIR" in machine.err


@pytest.fixture
def cloud(machine):
  machine.stub("gcloud", _CLOUD)
  machine.stub("sudo")
  machine.stub("git", 'touch "${2#--output=}"')
  for name in ("tar", "python3"):
    machine.stub(name)
  machine.stub("mountpoint", "exit 1")
  (machine.folder / "worker").mkdir()
  machine.environment |= {
    "WORKER": str(machine.folder / "worker"),
    "ZONE": "z",
    "NFS": "10.0.0.2:/share",
    "POLL_SECONDS": "0",
  }
  return machine


def _verbs(machine):
  return [" ".join(call[2:4]) for call in machine.calls("gcloud")]


def test_tpu_vm_asks_waits_installs_and_runs(cloud):
  (cloud.folder / "states").write_text("\nWAITING_FOR_RESOURCES\nACTIVE\n")
  cloud.stub("python")
  assert (
    cloud.run("tpu_vm.sh", "--config=c.py", "--workdir=/a b", SPOT="1") == 0
  )
  describe, ssh = "queued-resources describe", "tpu-vm ssh"
  assert _verbs(cloud) == [
    describe,
    "queued-resources create",
    describe,
    describe,
    "tpu-vm scp",
    ssh,
    ssh,
  ]
  create = cloud.calls("gcloud")[1]
  assert "--spot" in create and "--node-id=ecos" in create
  for call in cloud.calls("gcloud"):
    assert ("--worker=all" in call) == (call[2] == "tpu-vm")
    assert "--zone=z" in call
  flags = ["--coordinator=auto", "--config=c.py", "--workdir=/a b"]
  assert cloud.calls("python") == [["-m", "ecos_jax.train", *flags]]
  mount = ["mount", "-t", "nfs", "10.0.0.2:/share", "/mnt/ecos"]
  assert mount in cloud.calls("sudo")


def test_tpu_vm_comes_back_when_it_was_taken_away(cloud):
  # Lost in the run; asked for again; then an error, which ends it.
  (cloud.folder / "states").write_text(
    "ACTIVE\nSUSPENDED\nSUSPENDED\nSUSPENDED\n\nACTIVE\n"
  )
  cloud.stub("python", "exit 1")
  assert cloud.run("tpu_vm.sh") == 1
  assert len(cloud.calls("python")) == 2
  verbs = _verbs(cloud)
  assert verbs.index("queued-resources delete") < verbs.index(
    "queued-resources create"
  )


def test_tpu_vm_tells_of_a_request_that_failed(cloud):
  (cloud.folder / "states").write_text("FAILED\n")
  assert cloud.run("tpu_vm.sh") == 1
  assert "the request failed" in cloud.err
  assert _verbs(cloud) == ["queued-resources describe"]


_PARSE = """
import json, sys
from absl import flags
from ecos_jax import train
values = flags.FLAGS
values(["train", *sys.argv[1:]])
print(json.dumps([values.coordinator, values.workdir, values.config.seed]))
"""


def _parsed(arguments: list[str]) -> list:
  assert arguments[:2] == ["-m", "ecos_jax.train"]
  out = subprocess.run(
    [sys.executable, "-c", _PARSE, *arguments[2:]],
    cwd=_ROOT,
    env=os.environ | {"PYTHONPATH": str(_ROOT)},
    check=True,
    capture_output=True,
  )
  return json.loads(out.stdout)


@pytest.mark.slow
def test_the_flags_are_those_of_train(cloud):
  cloud.stub("python")
  (cloud.folder / "states").write_text("ACTIVE\n")
  config = "--config=configs/digits_manual.py"
  assert cloud.run("tpu_vm.sh", config, "--workdir=/mnt/ecos/run") == 0
  [tpu] = cloud.calls("python")
  assert _parsed(tpu) == ["auto", "/mnt/ecos/run", 1]
  cloud.stub("srun")
  environment = _slurm(WORKDIR="/shared", SLURM_ARRAY_TASK_ID="3")
  assert cloud.run("slurm.sbatch", config, **environment) == 0
  [task] = cloud.calls("srun")
  assert _parsed(task[4:]) == ["auto", "/shared/seed-3", 3]
  container = _container()
  command = [*container["command"], *container["args"]]
  assert command[0] == "python"
  assert _parsed(command[1:]) == ["auto", "/mnt/ecos/runs/usps", 1]


@pytest.fixture
def real(machine, python):
  """Returns the environment of real runs, from a folder with configs/."""
  (machine.folder / "configs").symlink_to(_ROOT / "configs")
  commands = f'[[ $1 == -m ]] && exec {python} "$@"'
  machine.stub("python", f'{commands}\nexec {sys.executable} "$@"')
  return {k: v for k, v in os.environ.items() if k.startswith("JAX_")}


def _wait_for(found, process):
  deadline = time.monotonic() + 200
  while not found():
    if process.poll() is not None or time.monotonic() > deadline:
      raise AssertionError(process.communicate())
    time.sleep(0.05)


@pytest.mark.slow
def test_two_slurm_tasks_find_each_other_and_come_back(machine, real):
  """Through jax's own detection: nothing but SLURM's variables is given."""
  machine.stub("srun", _RUN_TASKS)
  machine.stub("scontrol")
  environment = real | _slurm(WORKDIR="runs")
  environment["JAX_COORDINATOR_PORT"] = str(_free_port())
  process = machine.start("slurm.sbatch", *_SMOKE, **environment)
  run = machine.folder / "runs/seed-1"
  _wait_for((run / "model/checkpoints/10").exists, process)
  for pid in Path(f"{machine.notes}.pids").read_text().split():
    os.kill(int(pid), signal.SIGTERM)
  out, err = process.communicate(timeout=100)
  assert process.returncode == 75, err
  assert "process 0 of 2" in out and "process 1 of 2" in out
  assert machine.calls("scontrol") == [["requeue", "812"]]
  assert not (run / "summary.json").exists()
  assert machine.run("slurm.sbatch", *_SMOKE, **environment) == 0, machine.err
  assert "done before" in machine.out
  assert (run / "summary.json").exists()


def _free_port() -> int:
  with socket.socket() as free:
    free.bind(("localhost", 0))
    return free.getsockname()[1]


@pytest.mark.slow
def test_two_local_processes(machine, real):
  environment = real | {"PROCESSES": "2"}
  flags = (*_SMOKE, "--workdir=run")
  assert machine.run("local.sh", *flags, **environment) == 0, machine.err
  assert "process 0 of 2" in machine.out and "process 1 of 2" in machine.out
  assert (machine.folder / "run/summary.json").exists()


@pytest.mark.parametrize(
  ("variables", "message"),
  [
    ({"PROCESSES": "0"}, "PROCESSES=0"),
    ({"PROCESSES": "abc"}, "PROCESSES=abc"),
    ({"RESTARTS": "-1"}, "RESTARTS=-1"),
    ({"PROCESSES": "2", "CUDA_VISIBLE_DEVICES": "0"}, "names fewer GPUs"),
  ],
)
def test_local_refuses_numbers_that_make_no_sense(variables, message):
  result = subprocess.run(
    ["bash", "launch/local.sh", "--workdir=nowhere"],
    cwd=_ROOT,
    env=os.environ | variables,
    capture_output=True,
    text=True,
    timeout=30,
  )
  assert result.returncode == 1
  assert message in result.stderr
