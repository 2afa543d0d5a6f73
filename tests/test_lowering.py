"""Every tiny config, and those of the papers' sizes: shapes, shardings and the TPU's program, without the memory."""

import jax
import pytest

from tests.runs import FIRST, TINY, path_of, variants_of_methods
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
# One of each method for `make test`.
SHORT = ["configs/sgi/pretrain.py:mixed", "configs/sgi/finetune.py:sgi", "configs/rlhf/rl.py:qa_elastic"]
SHORT += [TINY[name] for name in sorted(FIRST)]


@pytest.mark.parametrize("spec", variants_of_methods([*TINY.values(), *PAPER], short=SHORT))
def test_step_lowers_for_tpu(spec):
    config = configs.load(path_of(spec), {"mesh.data": "2", "mesh.fsdp": "4"})
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    method = population.make(config, mesh)
    state = loop.abstract_state(config, method, mesh)
    shardings = jax.tree.map(lambda x: x.sharding, state)
    step = jax.jit(method.step, donate_argnums=0, out_shardings=(shardings, replicated(mesh)))
    with jax.set_mesh(mesh):
        text = step.trace(state, method.spec, method.consts_spec).lower(lowering_platforms=("tpu",)).as_text()
    assert "mhlo.num_partitions = 8" in text
    if spec.endswith((":mixed", ":large", ":sgi")):  # a plain depthwise convolution there, shifted sums only on CPU
        assert "feature_group_count = 64" in text or "feature_group_count = 192" in text
