"""Several processes equal one; notices of preemption and kills lose nothing that was saved."""

import json
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

from tests.runs import ROOT, TINY, assert_close, assert_equal, load
from training.checkpoint import read_arrays
from training.metrics import read_rows
from training.testing import train

# The first variant of each method, for they share a stream; and one with weights that are no part of the state.
FIRST = {load(spec).method: name for name, spec in reversed(TINY.items())}
PROCESSES = [*FIRST.values(), "rl:tiny_lora"]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(args):
    env = {**os.environ, "JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, *args], cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.parametrize("name", PROCESSES)
def test_two_processes_equal_one(tmp_path, name):
    port = free_port()
    command = ["-m", "launch.train", "--config", TINY[name], "--workdir", str(tmp_path / "two"), "--config.mesh.fsdp=2"]
    command += ["--coordinator", f"127.0.0.1:{port}", "--processes", "2"]
    processes = [start([*command, "--process", str(i)]) for i in range(2)]
    outputs = [p.communicate(timeout=300)[0] for p in processes]
    assert [p.returncode for p in processes] == [0, 0], outputs[0][-2000:] + outputs[1][-2000:]
    arrays = read_arrays(str(tmp_path / "two"))
    expected = train(load(TINY[name], mesh__data=1), tmp_path / "one")
    assert arrays["step"] == expected.step
    assert_close(jax.device_get(expected.params), arrays["params"], 3e-5)
    for a, b in zip(*(read_rows(tmp_path / run / "metrics.jsonl") for run in ("two", "one")), strict=True):
        assert a["step"] == b["step"]
        if "train/loss" in b:
            np.testing.assert_allclose(a["train/loss"], b["train/loss"], rtol=1e-4)


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
    a, b = (read_arrays(str(tmp_path / name)) for name in ("run", "straight"))
    assert int(a["step"]) == 120
    assert_equal(a, b)


def latest(folder):
    return max((int(p.name) for p in folder.glob("*") if p.name.isdigit()), default=0)


def test_sigterm_stops_two_processes_at_one_step(tmp_path):
    """A preemption notice to one process: both save the same step and leave with exit code 0."""
    command = ["-m", "launch.train", "--config", TINY["pretrain:tiny_bc"], "--workdir", str(tmp_path)]
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
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "preempted"
    assert read_arrays(str(tmp_path))["step"] > 3
