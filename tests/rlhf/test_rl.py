"""rlhf_jax.rl: a phase of each algorithm on a tiny model; resets, LoRA, early stopping, what bad configs say."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import decoder
from rlhf_jax import policy as policies
from rlhf_jax import rl
from rlhf_jax.algorithms import masks
from rlhf_jax.algorithms.objectives import choose_samples
from rlhf_jax.rollouts import rollout
from training import config as configs
from training import population
from training.errors import UserError
from training.sharding import make_mesh, replicated

CONFIG = Path(__file__).parents[2] / "configs" / "rlhf" / "rl.py"
EOS = 0  # of tokenisers made here


PLAIN = {"elastic__mode": "none", "elastic__decay": "0.0", "rl__kl_reference": "init", "rl__ratio_mode": "behaviour"}
VARIANTS = {  # what the tests call a variant: (variant of the config, overrides)
    "ppo": ("tiny", PLAIN),
    "head": ("tiny_lora", {"lora__rank": 0}),
    "elastic": ("tiny", {}),
    "dpo": ("tiny_dpo", {}),
    "lora": ("tiny_lora", {}),
    **{name: ("tiny_dpo", {"rl__algorithm": name}) for name in ("rloo", "copg", "ipo", "best_of_n")},
    "reinforce": ("tiny_dpo", {"rl__algorithm": "reinforce", "sample__each": 1}),
}


def load(variant, **overrides):
    name, own = VARIANTS[variant]
    return configs.load(f"{CONFIG}:{name}", {k.replace("__", "."): str(v) for k, v in {**own, **overrides}.items()})


def begin(variant, **overrides):
    """(method, stream, first state, consts) on one device."""
    method = rl.make(population.measured(load(variant, **overrides)), make_mesh(1))
    consts = method.consts()
    state = method.warm(jax.jit(lambda: method.init(jnp.uint32(0)))(), consts)
    return method, method.stream(consts), placed(state), consts


def placed(state):
    return jax.device_put(state, replicated(make_mesh(1)))


def step(run, state=None, batch=None):
    method, stream, first, consts = run
    state = first if state is None else state
    batch = stream.next(placed(state)) if batch is None else batch
    return (*jax.jit(method.step)(state, batch, consts), batch)


def close(a, b, tolerance=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance), a, b)


def test_the_sampler_and_the_learner_agree_before_the_first_update():
    _, metrics, batch = step(begin("rloo", sample__temperature="0.7"))
    assert abs(float(metrics["kl"])) < 1e-4  # the reference is the policy itself
    run = begin("rloo", sample__temperature="0.7", rl__ratio_mode="recompute", rl__epochs=1, rl__minibatches=1)
    _, metrics, _ = step(run, batch=batch)
    assert abs(float(metrics["ratio"]) - 1) < 1e-4
    run = begin("rloo", sample__temperature="0.7", rl__epochs=1, rl__minibatches=1)
    _, metrics, _ = step(run, batch=batch)
    assert abs(float(metrics["ratio"]) - 1) < 1e-4  # with the sampler's own log-probs too


@pytest.mark.parametrize("mode", ["elastic", "ema", "init"])
def test_a_reset_puts_the_policy_where_it_should_be(mode):
    """Against the same phase without a reset, from a state whose average is no longer the start."""
    batch, states = None, {}
    for name in ("none", mode):
        run = begin("elastic", elastic__mode=name, elastic__reset_opt="False", elastic__reset_critic="False")
        ema = jax.tree.map(lambda x: x + 0.01, run[2].extra["ema"])
        first = run[2].replace(step=jnp.int32(2), extra={**run[2].extra, "ema": ema})  # elastic.every is 2
        states[name], metrics, batch = step(run, first, batch)
        assert bool(metrics["reset"]) == (name != "none")
    free, reset, start = states["none"], states[mode], begin("elastic")[3]["init"]
    close(reset.params["policy"], start if mode == "init" else free.extra["ema"]["policy"])
    close(reset.extra["ema"]["policy"], free.extra["ema"]["policy"] if mode == "ema" else start)
    close(reset.params["value"], free.params["value"])  # the critic goes on
    close(reset.opt_state, free.opt_state)  # and so do Adam's moments


def test_no_reset_between_and_at_the_start():
    run = begin("elastic")
    state, metrics, _ = step(run)
    assert not bool(metrics["reset"])  # phase 0, elastic.at_zero is off
    state, metrics, _ = step(run, state)
    assert not bool(metrics["reset"])
    state, metrics, _ = step(run, state)
    assert bool(metrics["reset"])
    close(state.extra["ema"]["value"], state.extra["value_init"])  # reset_critic


@pytest.mark.parametrize("variant", ["rloo", "dpo", "copg"])
def test_accumulation_and_chunks_change_nothing(variant):
    whole, _, batch = step(begin(variant))
    parts, _, _ = step(begin(variant, accumulate=2, rl__forward_rows=8), batch=batch)
    close(whole.params, parts.params, 2e-5)


def test_preferences_train_on_the_best_and_the_worst_sample():
    run = begin("dpo")
    batch = {k: np.array(v) for k, v in run[1].next(run[2]).items()}
    batch["score"] = np.tile(np.float32([0.3, 0.9, 0.1]), (16, 1))
    chosen, tied = choose_samples(jnp.asarray(batch["score"]), "pair")
    found = rl.take(batch, chosen)
    np.testing.assert_array_equal(found["tokens"][:, 0], batch["tokens"][:, 1])
    np.testing.assert_array_equal(found["tokens"][:, 1], batch["tokens"][:, 2])
    batch["score"][:] = 0.5
    state, metrics, _ = step(run, batch=batch)
    assert float(metrics["ties"]) == 1
    assert not tied.any()
    close(state.params, run[2].params, 0)  # nothing to learn from ties


def test_preferences_move_probability_to_the_chosen_sample():
    run = begin("dpo", optim__lr="1e-3")
    state, _, batch = step(run)
    for _ in range(3):
        state, metrics, _ = step(run, state, batch)
    assert float(metrics["accuracy"]) > 0.9
    assert float(metrics["margin"]) > 0


def test_lora_trains_its_matrices_alone():
    run = begin("lora")
    state, _, _ = step(run)
    names = {str(path[-1].key) for path, _ in jax.tree_util.tree_leaves_with_path(state.params["policy"])}
    assert names == {"a", "b"}
    assert run[3]["frozen"]["embed"]["tokens"].shape[1] == 32
    assert any(np.abs(x).max() > 0 for x in jax.tree.leaves(state.params["policy"]["blocks"]["attn"]["q"]["b"]))


def test_lengths_of_responses_are_drawn_a_batch():
    """StackLLaMA: all responses of a batch are cut to one length in [shortest, N], and learned from up to there."""
    run, lengths = begin("lora", sample__stop="False", sample__shortest="3"), []
    for number in range(14):
        state = placed(run[2].replace(step=jnp.int32(number)))
        batch = run[1].next(state)
        real = np.asarray(batch["logps"]) != 0
        lengths.append(real.sum(-1).max())
        assert (real == (np.arange(8) < lengths[-1])).all()
        assert (np.asarray(batch["tokens"]) != EOS).all()  # sample.stop is off
    assert {3, 8} <= set(lengths) <= set(range(3, 9))
    _, metrics, _ = step(run, batch=batch)
    assert float(metrics["length"]) == lengths[-1]


PLACES = (lambda s: s.params["policy"], lambda s: s.extra["limit"])


def test_nlpo_renews_its_limit_and_keeps_ratios_of_one():
    once = {"rl__epochs": 1, "rl__minibatches": 1, "rl__stop_kl": 0.0, "optim__lr": "1e-2"}
    run = begin("lora", rl__limit_p=0.5, rl__limit_every=3, **once)
    own, limit = (lambda s, place=place: np.asarray(place(s)["blocks"]["attn"]["q"]["b"]) for place in PLACES)
    state = run[2]
    for number in range(4):
        before = state
        state, metrics, _ = step(run, before)
        assert abs(float(metrics["ratio"]) - 1) < 1e-4  # before the only update, though the policy has left its limit
        wanted = own(state) if number == 2 else limit(before)
        np.testing.assert_array_equal(limit(state), wanted)
    assert np.abs(own(state) - limit(state)).max() > 0


def test_log_probs_within_a_nucleus_against_numpy():
    config = load("lora", rl__limit_p=0.5)
    policy = policies.Policy(config, policies.model_config(config))
    setup = rollout.Setup(config, policy, rollout.sampler_of(config.sample), None, make_mesh(1))
    ids = np.random.default_rng(0).integers(2, 300, (2, 16)).astype(np.int32)
    mask = np.ones_like(ids, bool)
    weights, limit = policy.base(), decoder.init(jax.random.key(5), policy.cfg)
    found = np.asarray(rl.response_logprobs(weights, setup, ids, mask, 8, limit)[0])
    for row in range(2):
        z, older = (
            np.asarray(decoder.logits(w, policy.cfg, decoder.hidden(w, policy.cfg, ids, mask)))[row, 7:-1]
            for w in (weights, limit)
        )
        for t in range(8):
            order = np.argsort(-older[t])
            p = np.exp(older[t][order]) / np.exp(older[t]).sum()
            kept = set(order[: int(np.searchsorted(np.cumsum(p), 0.5)) + 1]) | {ids[row, 8 + t]}
            total = np.log(sum(np.exp(z[t][i] / config.sample.temperature) for i in kept))
            assert found[row, t] == pytest.approx(z[t][ids[row, 8 + t]] / config.sample.temperature - total, abs=1e-3)


def test_early_stopping_leaves_the_weights_alone():
    run = begin("head", rl__stop_kl="1e-12", elastic__decay="0.9", elastic__cadence="epoch")
    state, metrics, _ = step(run)
    assert float(metrics["approx_kl"]) > 1e-12
    moved = [np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (state.params, run[2].params)), strict=True)]
    limit = 2 * load("head").optim.lr  # the first update has approx_kl 0 or a rounding error, and may pass
    assert max(moved) <= limit


def test_missing_eos_replaces_the_score():
    score = masks.eos_mode(jnp.float32([1.0, 2.0]), jnp.array([True, False]), "replace", -1.0)
    assert score.tolist() == [1.0, -1.0]
    run = begin("head")  # eos_mode 'replace'
    batch = {k: np.array(v) for k, v in run[1].next(run[2]).items()}
    batch["ended"][:] = False
    _, metrics, _ = step(run, batch=batch)
    batch["score"][:] = 100.0  # of no importance: every score is replaced
    _, other, _ = step(run, batch=batch)
    assert float(metrics["value_loss"]) == float(other["value_loss"])


@pytest.mark.parametrize("variant", ["reinforce", "ipo", "best_of_n"])
def test_every_algorithm_takes_a_step(variant):
    run = begin(variant)
    state, metrics, _ = step(run)
    assert all(np.isfinite(np.asarray(x)).all() for x in jax.tree.leaves(metrics))
    assert any(np.abs(a - b).max() > 0 for a, b in zip(*map(jax.tree.leaves, (state.params, run[2].params)), strict=True))


def test_a_toy_reward_is_learned():
    """Longer answers: the mean score of the rollouts rises within a few phases."""
    run = begin("rloo", optim__lr="3e-3", rl__kl="0.0")
    advance = jax.jit(run[0].step)
    state, scores = run[2], []
    for _ in range(16):
        state, metrics = advance(state, run[1].next(state), run[3])
        scores.append(float(metrics["score"]))
    assert np.mean(scores[-4:]) > np.mean(scores[:4]) + 0.05


@pytest.mark.parametrize(
    ("variant", "overrides", "says"),
    [
        ("ppo", {"rl__algorithm": "grpo"}, "rl.algorithm 'grpo' is unknown"),
        ("dpo", {"sample__each": 1}, "set sample.each to 2 or more"),
        ("ppo", {"rl__limit_p": 1.5}, "rl.limit_p .NLPO. must be in"),
        ("ppo", {"rl__minibatches": 3}, "does not split into 3 minibatches"),
        ("ppo", {"rl__ratio_mode": "stale"}, "rl.ratio_mode 'stale' is unknown"),
        ("ppo", {"elastic__mode": "elastic"}, "set elastic.decay"),
        ("ppo", {"reward__kind": "model"}, "is neither a workdir of rlhf_jax.reward_model nor"),
        ("ppo", {"reward__kind": "vibes"}, "no reward 'vibes'"),
        ("ppo", {"sources__init": "/nowhere"}, "nowhere"),
        ("ppo", {"rl__forward_rows": 5}, "do not split into chunks of 5"),
    ],
)
def test_bad_configs_get_one_line(variant, overrides, says):
    with pytest.raises(UserError, match=says):
        step(begin(variant, **overrides))
