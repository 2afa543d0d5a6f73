"""Every tiny config, and those of the papers' sizes: shapes, shardings and the TPU's program, without the memory."""

from pathlib import Path

import jax
import pytest

from tests.runs import ROOT, TINY
from training import config as configs
from training import loop, population
from training.sharding import make_mesh, replicated

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


@pytest.mark.parametrize("spec", [*TINY.values(), *PAPER])
def test_step_lowers_for_tpu(spec):
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
