"""Every tiny config: resumed == straight, sharded == one device, two processes == one, lowers for TPU, survives kill -9."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from training import config as configs
from training import loop, population
from training.checkpoint import read_arrays
from training.sharding import make_mesh, replicated
from training.testing import train

ROOT = Path(__file__).parents[1]
PAPER = [
    "configs/sgi/pretrain.py:mixed",
    "configs/sgi/pretrain.py:large",
    "configs/sgi/pretrain.py:small_net",
    "configs/sgi/finetune.py:sgi",
    "configs/sgi/finetune.py:spr",
    "configs/sgi/finetune.py:der",
    "configs/sgi/finetune.py:drq",
    "configs/sgi/finetune.py:sr_spr",
    "configs/sgi/finetune.py:bbf",
    "configs/sgi/curiosity.py:paper",
    "configs/kbc/complete.py:factorized_dense",
    "configs/kbc/complete.py:dnn",
    "configs/kbc/complete.py:bilinear",
    "configs/rlhf/sft.py:chat",
    "configs/rlhf/reward_model.py:tldr",
    "configs/rlhf/dpo.py:tldr",
    "configs/rlhf/rl.py:tldr_ppo",
    "configs/rlhf/rl.py:qa_elastic",
    "configs/rlhf/translation.py:game",
]
TOKENS = {"data.dir": "toy", "tokeniser.kind": "bpe", "tokeniser.vocab": "300"}
SMALL = {  # data of a moment, for networks of any size
    "pretrain": {"data.collect": "400", "data.shards": "all"},
    "finetune": {"agent.pretrained": "False"},
    "curiosity": {"agent.normalise": "8"},
    "complete": {"data.dir": "toy", "words.kind": "random"},
    "sft": TOKENS,
    "dpo": TOKENS,
    "reward_model": TOKENS,
    "rl": {**TOKENS, "reward.kind": "length", "gold.kind": ""},
    "translation": {"data.dir": "toy"},
}


def load(spec, **overrides):
    return configs.load(str(ROOT / spec), {k.replace("__", "."): str(v) for k, v in overrides.items()})


def variants():
    for path in sorted((ROOT / "configs").rglob("*.py")):
        if path.name != "__init__.py":
            yield from (f"{path.relative_to(ROOT)}:{v}" for v in configs.load_module(path).VARIANTS)


# 'pretrain:tiny' -> 'configs/sgi/pretrain.py:tiny', for every tiny variant of every config.
TINY = {f"{Path(s).stem}:{s.split(':')[1]}": s for s in variants() if s.split(":")[1].startswith("tiny")}


def assert_equal(a, b):
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y, err_msg=str(path))


def assert_close(a, b, tolerance=1e-5):
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance, err_msg=str(path))


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """name -> the last state of a whole run on one device, and its workdir."""
    done = {}

    def get(name):
        if name not in done:
            workdir = tmp_path_factory.mktemp(name.replace(":", "-"))
            done[name] = train(load(TINY[name], mesh__data=1), workdir), workdir
        return done[name]

    return get


@pytest.mark.parametrize("spec", list(variants()))
def test_every_variant_is_a_config(spec):
    config = configs.load(str(ROOT / spec))
    assert config.is_locked and config.method and config.steps > 0


def test_every_config_has_a_tiny_variant():
    assert {spec.split(":")[0] for spec in variants()} == {spec.split(":")[0] for spec in TINY.values()}


@pytest.mark.parametrize("name", TINY)
def test_resumed_run_equals_straight_run(straight, tmp_path, name):
    config = load(TINY[name], mesh__data=1)
    train(config, tmp_path, stop_after=4)  # not a multiple of anything
    assert_equal(straight(name)[0], train(config, tmp_path))


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("mesh", [(8, 1), (1, 8), (2, 4)], ids=["data", "fsdp", "mixed"])
def test_sharded_step_equals_one_device(straight, name, mesh):
    """From one state after a few steps, one more step: on one device, and on eight."""
    results = [one_more_step(straight(name)[1], load(TINY[name], mesh__data=d, mesh__fsdp=f)) for d, f in ((1, 1), mesh)]
    assert_close(*results)
    if mesh[1] > 1:
        specs = [x.sharding.spec for x in jax.tree.leaves(results[1][0].params)]
        assert any("fsdp" in spec for spec in specs)


def one_more_step(workdir, config):
    """Restore a finished run onto the config's mesh and take one step on its next batch -> (state, metrics)."""
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    method, stream = population.make(config, mesh)
    target = loop.abstract_state(config, method, stream, mesh)
    shardings = jax.tree.map(lambda x: x.sharding, target)
    restored = loop.Checkpoints(workdir).restore(target)
    stream.set_state(restored.stream)
    step = jax.jit(method.step, out_shardings=(shardings, replicated(mesh)))
    with jax.set_mesh(mesh):
        return step(restored.state, stream.next(restored.state), method.consts())


@pytest.mark.parametrize("spec", [*TINY.values(), *PAPER])
def test_step_lowers_for_tpu(spec):
    """Paper-size configs too: shapes, shardings and the program, without the memory."""
    data = SMALL[Path(spec.split(":")[0]).stem]
    config = configs.load(str(ROOT / spec), {"mesh.data": "2", "mesh.fsdp": "4", **data})
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    method, stream = population.make(config, mesh)
    state = loop.abstract_state(config, method, stream, mesh)
    shardings = jax.tree.map(lambda x: x.sharding, state)
    step = jax.jit(method.step, donate_argnums=0, out_shardings=(shardings, replicated(mesh)))
    with jax.set_mesh(mesh):
        text = step.trace(state, stream.spec, jax.eval_shape(method.consts)).lower(lowering_platforms=("tpu",)).as_text()
    assert "mhlo.num_partitions = 8" in text
    if spec.endswith((":mixed", ":large", ":sgi")):  # a plain depthwise convolution there, shifted sums only on CPU
        assert "feature_group_count = 64" in text or "feature_group_count = 192" in text


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(args, **environment):
    env = {**os.environ, "JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(ROOT), **environment}
    return subprocess.Popen(
        [sys.executable, *args], cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.parametrize("name", TINY)
def test_two_processes_equal_one(straight, tmp_path, name):
    port = free_port()
    command = ["-m", "launch.train", "--config", TINY[name], "--workdir", str(tmp_path), "--config.mesh.fsdp=2"]
    command += ["--coordinator", f"127.0.0.1:{port}", "--processes", "2"]
    processes = [start([*command, "--process", str(i)], JAX_NUM_CPU_DEVICES="1") for i in range(2)]
    outputs = [p.communicate(timeout=300)[0] for p in processes]
    assert [p.returncode for p in processes] == [0, 0], outputs[0][-2000:] + outputs[1][-2000:]
    arrays = read_arrays(str(tmp_path))
    expected = straight(name)[0]
    assert arrays["step"] == expected.step
    assert_close(jax.device_get(expected.params), arrays["params"], 3e-5)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    whole = [json.loads(line) for line in (straight(name)[1] / "metrics.jsonl").read_text().splitlines()]
    for a, b in zip(rows, whole, strict=True):
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
