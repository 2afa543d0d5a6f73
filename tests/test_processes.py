"""Several processes equal one; notices of preemption and kills lose nothing that was saved."""

import os
import random
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from tests.runs import FIRST, ROOT, TINY, assert_close, assert_equal, load, path_of, variants_of_methods
from training.runs import Run
from training.testing import train

# The first variant of each method, for they share a stream; and one with weights that are no part of the state. Three kinds of
# stream: a data set, an emulator, a generator; the first and the last for `make test`, and the sixth method of the docs.
PROCESSES = variants_of_methods([*sorted(FIRST), "rl:tiny_lora"], short=("line:tiny", "forecast:tiny", "rl:tiny"))


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(args, devices=1):
    env = {
        **os.environ,
        "JAX_NUM_CPU_DEVICES": str(devices),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }
    return subprocess.Popen(
        [sys.executable, *args], cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def train_in_two(name, workdir, *options, devices=1):
    """Train a tiny config in two processes of so many devices."""
    command = ["-m", "launch.train", "--config", path_of(TINY[name]), "--workdir", str(workdir), *options]
    command += ["--coordinator", f"127.0.0.1:{free_port()}", "--processes", "2"]
    processes = [start([*command, "--process", str(i)], devices) for i in range(2)]
    outputs = [p.communicate(timeout=300)[0] for p in processes]
    assert [p.returncode for p in processes] == [0, 0], outputs[0][-2000:] + outputs[1][-2000:]


def test_a_mesh_may_be_a_part_of_the_devices_of_two_processes(tmp_path):
    """Two of four devices, one of each process."""
    train_in_two("line:tiny", tmp_path / "two", "--config.mesh.data=2", devices=2)
    expected = train(load(TINY["line:tiny"], mesh__data=1), tmp_path / "one")
    assert_close(jax.device_get(expected.params), Run(tmp_path / "two").arrays()["params"], 3e-5)
    assert Run(tmp_path / "two").info["mesh"] == {"data": 2, "fsdp": 1, "tensor": 1}
    assert len(Run(tmp_path / "two").info["machine"]["devices"]) == 4


@pytest.mark.parametrize("name", PROCESSES)
def test_two_processes_equal_one(tmp_path, name):
    train_in_two(name, tmp_path / "two", "--config.mesh.fsdp=2")
    arrays = Run(tmp_path / "two").arrays()
    expected = train(load(TINY[name], mesh__data=1), tmp_path / "one")
    assert arrays["step"] == expected.step
    assert_close(jax.device_get(expected.params), arrays["params"], 3e-5)
    for a, b in zip(*(Run(tmp_path / run).rows() for run in ("two", "one")), strict=True):
        assert a["step"] == b["step"]
        if "train/loss" in b:
            np.testing.assert_allclose(a["train/loss"], b["train/loss"], rtol=1e-4)


@pytest.mark.long
def test_kill_9_loses_only_the_work_since_the_last_checkpoint(tmp_path):
    """Twenty random moments of a run that saves at every step; in the end it equals a run that was never killed."""
    rng, kills, reached = random.Random(0), 0, 0
    script = "import sys; from training.testing import *; train(toy_config(steps=120, checkpoint__every=1), sys.argv[1])"
    checkpoints = tmp_path / "run" / "checkpoints"
    while kills < 20:
        process = start(["-c", script, str(tmp_path / "run")])
        before = latest(checkpoints)
        while process.poll() is None and latest(checkpoints) == before:
            time.sleep(0.01)  # it works
        time.sleep(rng.uniform(0, 0.3))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        found = latest(checkpoints)
        assert found >= reached, "a finished checkpoint was lost"
        reached = found
    assert kills >= 10
    process = start(["-c", script, str(tmp_path / "run")])
    assert process.wait(timeout=120) == 0, process.stdout.read()[-2000:]
    process = start(["-c", script, str(tmp_path / "straight")])
    assert process.wait(timeout=120) == 0
    a, b = (Run(tmp_path / name).arrays() for name in ("run", "straight"))
    assert int(a["step"]) == 120
    assert_equal(a, b)


def latest(folder):
    return max((int(p.name) for p in folder.glob("*") if p.name.isdigit()), default=0)


def test_sigterm_stops_two_processes_at_one_step(tmp_path):
    """A preemption notice to one process: both save the same step and leave with exit code 0."""
    command = ["-m", "launch.train", "--config", TINY["line:tiny"], "--workdir", str(tmp_path)]
    command += ["--config.mesh.fsdp=2", "--config.steps=1000000", "--config.checkpoint.every=1000000"]
    command += ["--coordinator", f"127.0.0.1:{free_port()}", "--processes", "2"]
    processes = [start([*command, "--process", str(i)]) for i in range(2)]
    metrics = tmp_path / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while not (metrics.exists() and metrics.read_text().count("\n") > 3) and time.monotonic() < deadline:
        time.sleep(0.1)
    processes[1].send_signal(signal.SIGTERM)
    outputs = [p.communicate(timeout=120)[0] for p in processes]
    assert [p.returncode for p in processes] == [0, 0], outputs[0][-2000:] + outputs[1][-2000:]
    assert Run(tmp_path).status == "preempted"
    assert Run(tmp_path).arrays()["step"] > 3
