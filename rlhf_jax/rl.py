"""Reinforcement learning of a language model from scores: PPO, REINFORCE, RLOO, online DPO and IPO, Best-of-N, CoPG.

One step of the loop is one phase: a batch of rollouts (rollout.py), then `epochs` x `minibatches` updates on it, all in one
jitted program. Elastic Reset (Noukhovitch et al. 2023, algorithm 1) stands around any of them. Equations: docs/rlhf.md.

Legend: P prompts, k samples a prompt, R = P k rows, C prompt tokens, N response tokens, T = C + N, D width, V vocabulary.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from models import decoder, heads, sampling
from rlhf_jax import policy as policies
from rlhf_jax.algorithms import elastic, kl, losses, masks
from rlhf_jax.algorithms.objectives import OBJECTIVES, Scored, choose_samples
from rlhf_jax.policy import Policy
from rlhf_jax.rollouts import rollout
from rlhf_jax.rollouts.evaluate import STYLES, evaluations
from rlhf_jax.rollouts.judges import open_judge
from rlhf_jax.rollouts.rollout import Setup
from rlhf_jax.tasks.tokenised import open_data
from training import optim
from training.errors import UserError
from training.method import Method, Stream, TrainState
from training.rng import key_for
from training.sharding import BATCH, batch_ways, check_batch

sizes = policies.sizes


def make(config: ConfigDict, mesh: Mesh) -> Method:
    """The algorithm of `config.rl.algorithm` on the task of `config.data`, from the weights of `sources.init`."""
    check(config, mesh)
    policy, sampler = Policy(config, policies.model_config(config)), rollout.sampler_of(config.sample)
    setup = Setup(config, policy, sampler, optim.build(**config.optim), mesh)
    critic = OBJECTIVES[config.rl.algorithm].critic
    frozen_spec = policies.frozen_spec(policy, mesh, config.mesh.min_shard)
    data = functools.cache(lambda: open_data(config))
    reward = functools.cache(lambda: open_judge(config.reward.kind, config.sources.reward))
    gold = functools.cache(lambda: open_judge(config.gold.kind, config.sources.gold)) if config.gold.kind else None

    def init(seed: jax.Array) -> TrainState:
        params = {"policy": policy.fresh(key_for(0, 0, "base"))}
        if critic:
            trunk = decoder.init(key_for(0, 0, "value"), policy.cfg) if config.rl.value == "separate" else {}
            params["value"] = heads.with_head(key_for(seed, 0, "value"), trunk, policy.cfg)
        extra = {"kl": jnp.float32(config.rl.kl), **copies(params, config)}
        opt_state = setup.tx.init(params)
        return TrainState(step=jnp.int32(0), seed=jnp.uint32(seed), params=params, opt_state=opt_state, extra=extra)

    def warm(state: TrainState, consts: dict) -> TrainState:
        """The policy from `sources.init`; the separate critic from `sources.value` (a reward model), else from the policy."""
        params = {**state.params, "policy": jax.tree.map(jnp.copy, consts["init"])}
        if critic and config.rl.value == "separate":
            name, parts = "value" if config.sources.value else "init", ("reward", "policy")
            given = config.sources[name]
            trunk = policies.load_source(config, name, policy.cfg, parts, head=True) if given else policy.base()
            params["value"] = {**state.params["value"], **{k: v for k, v in trunk.items() if k != "head"}}
        extra = {**state.extra, **copies(params, config)}
        return state.replace(params=params, opt_state=setup.tx.init(params), extra=extra)

    def stream(consts: dict) -> Stream:
        task, tokeniser = data()
        examples = task.splits["train"]
        if gold is not None:
            gold()(examples)  # a wrong one shows now, not at the first evaluation
        return rollout.stream(setup, consts, examples.prompts, reward()(examples), tokeniser)

    return Method(
        spec=rollout.spec(setup),
        init=init,
        step=functools.partial(phase, setup=setup),
        stream=stream,
        evals=evaluations(setup, data, reward, gold),
        consts=lambda: policies.frozen(policy, frozen_spec),
        consts_spec=frozen_spec,
        rules=() if policy.rank else decoder.RULES,
        warm=warm,
        files=lambda: data()[1].files(),
    )


def check(config: ConfigDict, mesh: Mesh) -> None:
    """Raise UserError for values that cannot work together."""
    rl = config.rl
    if rl.algorithm not in OBJECTIVES:
        raise UserError(f"rl.algorithm {rl.algorithm!r} is unknown: use one of {', '.join(OBJECTIVES)}")
    if OBJECTIVES[rl.algorithm].samples > config.sample.each:
        raise UserError(f"{rl.algorithm} compares samples of one prompt: set sample.each to 2 or more")
    if config.batch % rl.minibatches:
        raise UserError(f"batch of {config.batch} prompts does not split into {rl.minibatches} minibatches")
    check_batch(config.batch // rl.minibatches, mesh, config.accumulate)
    for name, allowed in CHOICES.items():
        section, _, key = name.partition(".")
        if config[section][key] not in allowed:
            raise UserError(f"{name} {config[section][key]!r} is unknown: use one of {', '.join(allowed)}")
    if rl.limit_p and (not 0 < rl.limit_p <= 1 or rl.limit_every < 1 or rl.ratio_mode not in ("behaviour", "recompute")):
        raise UserError(
            "rl.limit_p (NLPO) must be in (0, 1], with limit_every of 1 or more and ratio_mode behaviour or recompute"
        )
    if config.eval.corpus.style not in STYLES:
        raise UserError(f"eval.corpus.style {config.eval.corpus.style!r} is unknown: use one of {', '.join(STYLES)}")
    if config.elastic.decay == 0 and (rl.kl_reference == "ema" or config.elastic.mode != "none"):
        raise UserError("elastic.mode and rl.kl_reference 'ema' need an average: set elastic.decay")


CHOICES = {
    "rl.ratio_mode": ("recompute", "behaviour", "decoupled", "tis"),
    "rl.eos_mode": ("replace", "subtract", "none"),
    "rl.kl_reference": ("init", "ema"),
    "rl.value": ("separate", "head"),
    "rl.whiten": ("rollout", "minibatch", "none"),
    "rl.score_place": ("after", "last"),
    "elastic.mode": ("none", "elastic", "ema", "init"),
    "elastic.cadence": ("step", "epoch", "iteration"),
}


def copies(params: dict, config: ConfigDict) -> dict:
    """NLPO's older policy; the EMA of what a reset touches; the critic's start, whose head is fresh in each run."""
    limit = {"limit": elastic.snapshot(params["policy"])} if config.rl.limit_p else {}
    if not config.elastic.decay:
        return limit
    with_critic = "value" in params and config.elastic.reset_critic
    followed = {name: params[name] for name in (("policy", "value") if with_critic else ("policy",))}
    start = {"value_init": elastic.snapshot(params["value"])} if with_critic else {}
    return {**limit, "ema": elastic.snapshot(followed), **start}


def phase(state: TrainState, batch: dict, consts: dict, setup: Setup) -> tuple[TrainState, dict]:
    """A step of the loop: everything that is learned from one batch of rollouts."""
    config, policy, control = setup.config, setup.policy, setup.config.rl.control
    if config.rl.limit_p:
        consts = {**consts, "limit": policy.weights(state.extra["limit"], consts["frozen"])}
    items, facts = prepare(state, batch, consts, setup)
    state, metrics = learn(state, items, consts, setup)
    state, reset = finish(state, consts, setup)
    far = facts["kl_token"] if control.kind == "rl4lms" else facts["kl"]
    rows = config.batch * config.sample.each
    beta = kl.control(control.kind, state.extra["kl"], far, target=control.target, batch=rows, horizon=control.horizon)
    extra = {**state.extra, "kl": jnp.asarray(beta, jnp.float32)}
    if config.rl.limit_p:
        due = (state.step + 1) % config.rl.limit_every == 0
        extra["limit"] = jax.tree.map(lambda a, b: jnp.where(due, a, b), state.params["policy"], extra["limit"])
    state = state.replace(step=state.step + 1, extra=extra)
    return state, {**metrics, **facts, "kl_weight": beta, "reset": reset}


def prepare(state: TrainState, batch: dict, consts: dict, setup: Setup) -> tuple[dict, dict]:
    """What stays fixed during the updates: items for the loss, each [P, ...], and metrics of the rollout.

    Of the metrics 'kl', 'kl_token' and 'length' are those of the samples that are learned from.
    """
    config, policy = setup.config, setup.policy
    rl, objective = config.rl, OBJECTIVES[config.rl.algorithm]
    score_Pk = masks.eos_mode(batch["score"], batch["ended"], rl.eos_mode, rl.eos_value)
    facts = {
        "score": batch["score"].mean(),
        "ended": batch["ended"].mean(),
        "staleness": (state.step - batch["version"]).mean(),
    }
    if objective.keep != "all":
        chosen, tied = choose_samples(score_Pk, objective.keep)
        batch, score_Pk = {**batch, **take(batch, chosen)}, jnp.take_along_axis(score_Pk, chosen, 1)
        facts["ties"] = tied.mean()
    N = batch["tokens"].shape[-1]
    real = masks.masks_of_lengths(batch["length"], N)
    items = join_prompt_response(batch, real.mask)

    def forward(function: Callable[..., jax.Array]) -> jax.Array:
        """function(ids [R, T], mask [R, T]) -> [R, N], over all P k rows in chunks -> [P, k, N]."""
        flat = (x.reshape(-1, x.shape[-1]) for x in (items["ids"], items["mask"]))
        return in_chunks(function, rl.forward_rows, *flat).reshape(real.mask.shape)

    def logps_of(trainable: Any, limit: dict | None = None) -> jax.Array:
        weights = policy.weights(trainable, consts["frozen"])
        logps_PkN = forward(lambda ids, mask: response_logprobs(weights, setup, ids, mask, N, limit)[0])
        return jnp.where(real.mask, logps_PkN, 0)

    reference_PkN = logps_of(state.extra["ema"]["policy"] if rl.kl_reference == "ema" else consts["init"])
    sampled_PkN = jnp.where(real.mask, batch["logps"], 0)
    recomputed_PkN = None if rl.ratio_mode == "behaviour" else logps_of(state.params["policy"])
    old_PkN, weight = losses.ratio_mode(rl.ratio_mode, sampled_PkN, recomputed_PkN, cap=rl.tis_cap, mask=real.mask)
    if not objective.critic:  # one ratio a response: the cap is on the product, not on its factors
        sums = (masks.masked_sum(x, real.mask) for x in (sampled_PkN, old_PkN))
        _, weight = losses.ratio_mode(rl.ratio_mode, *sums, cap=rl.tis_cap)
    values_PkN = None
    if objective.critic:
        values_PkN = forward(lambda ids, mask: critic_values(state.params, consts, setup, ids, mask, N))
    scored = Scored(score_Pk, old_PkN, reference_PkN, real, values_PkN)
    weight = jnp.broadcast_to(weight, old_PkN.shape if objective.critic else score_Pk.shape)
    far_PkN = old_PkN - reference_PkN
    if rl.limit_p:  # ratios are those of the limited policy, the KL penalty and its measure those of the whole one
        old_PkN = logps_of(state.params["policy"], consts["limit"])
    items |= {"old": old_PkN, "weight": weight, "ref": reference_PkN, "real": real.mask}
    items |= objective.credit(scored, state.extra["kl"], rl)
    lengths = {"length": real.mask.sum(-1).mean()}
    facts |= {"kl": far_PkN.sum(-1).mean(), "kl_token": masks.masked_mean(far_PkN, real.mask), **lengths}
    return items, facts


def in_chunks(function: Callable[..., Any], rows: int, *arrays: jax.Array) -> Any:
    """`function` over `rows` rows at a time, so that logits of a whole rollout never exist at once.

    Row r goes to chunk r % chunks, so that each chunk keeps the rows' sharding. rows 0, or no fewer than there are: one call.
    """
    n = len(arrays[0])
    if not rows or rows >= n:
        return function(*arrays)
    if n % rows:
        raise UserError(f"{n} rows do not split into chunks of {rows}; change config.rl.forward_rows")
    split = [x.reshape(rows, n // rows, *x.shape[1:]).swapaxes(0, 1) for x in arrays]
    out = jax.lax.map(lambda part: function(*part), tuple(split))
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(n, *x.shape[2:]), out)


def take(batch: dict, chosen: jax.Array) -> dict:
    """The chosen samples (int32 [P, c]) of each prompt: [P, k, N] -> [P, c, N]."""
    picked = {name: jnp.take_along_axis(batch[name], chosen[..., None], 1) for name in ("tokens", "logps")}
    return {**picked, "length": jnp.take_along_axis(batch["length"], chosen, 1)}


def join_prompt_response(batch: dict, real: jax.Array) -> dict:
    """Prompt and response side by side: {'ids' int32 [P, k, T], 'mask' bool [P, k, T]}. real: bool [P, k, N]."""
    P, k, _ = batch["tokens"].shape
    widen = lambda x: jnp.broadcast_to(x[:, None], (P, k, x.shape[-1]))  # noqa: E731
    ids = jnp.concatenate([widen(batch["prompt"]), batch["tokens"]], -1)
    return {"ids": ids, "mask": jnp.concatenate([widen(batch["prompt_mask"]), real], -1)}


def response_logprobs(
    weights: dict, setup: Setup, ids: jax.Array, mask: jax.Array, N: int, limit: dict | None = None
) -> tuple[jax.Array, jax.Array]:
    """Tempered log p of the last N tokens of ids [R, T], float32 [R, N]; the hidden states that predict them, [R, N, D].

    limit: weights of NLPO's older policy (Ramamurthy et al. 2023): p is that among the tokens in its nucleus. The token itself
      always counts as one of them: rounding may have put it on the other side of the edge than in the sampler.
    """
    cfg, temperature, chosen_RN = setup.policy.cfg, setup.sampler.temperature, ids[:, -N:]
    predicting = lambda w: decoder.hidden(w, cfg, ids, mask)[:, -N - 1 : -1]  # noqa: E731
    hidden_RND = predicting(weights)
    if limit is None:
        return decoder.chosen_logprobs(weights, cfg, hidden_RND, chosen_RN, temperature), hidden_RND
    allowed_RNV = sampling.nucleus(decoder.logits(limit, cfg, predicting(limit)), setup.config.rl.limit_p)
    allowed_RNV |= chosen_RN[..., None] == jnp.arange(allowed_RNV.shape[-1])
    z_RNV = jnp.where(allowed_RNV, decoder.logits(weights, cfg, hidden_RND) / (temperature + 1e-7), -jnp.inf)
    return jnp.take_along_axis(z_RNV, chosen_RN[..., None], -1)[..., 0] - jax.nn.logsumexp(z_RNV, -1), hidden_RND


def critic_values(params: dict, consts: dict, setup: Setup, ids: jax.Array, mask: jax.Array, N: int) -> jax.Array:
    """The critic's value of the state before each response token: float32 [R, N]."""
    policy = setup.policy
    if setup.config.rl.value == "separate":
        return heads.values(params["value"], policy.cfg, ids, mask)[:, -N - 1 : -1]
    hidden_RTD = decoder.hidden(policy.weights(params["policy"], consts["frozen"]), policy.cfg, ids, mask)
    return heads.head(params["value"]["score"], hidden_RTD[:, -N - 1 : -1])


def loss_fn(params: dict, part: dict, consts: dict, setup: Setup) -> tuple[jax.Array, dict]:
    """The objective's loss on some of the items."""
    policy, rl, (p, k, N) = setup.policy, setup.config.rl, part["real"].shape
    ids, mask = (part[name].reshape(p * k, -1) for name in ("ids", "mask"))
    weights = policy.weights(params["policy"], consts["frozen"])
    logps, hidden = response_logprobs(weights, setup, ids, mask, N, consts.get("limit"))
    values = None
    if OBJECTIVES[rl.algorithm].critic:
        shared = rl.value == "head"  # on the policy's own hidden states
        values = heads.head(params["value"]["score"], hidden) if shared else critic_values(params, consts, setup, ids, mask, N)
        values = values.reshape(p, k, N)
    loss, metrics = OBJECTIVES[rl.algorithm].loss(logps.reshape(p, k, N), values, part, rl)
    return loss, {"loss": loss, **metrics}


def gradients(params: dict, part: dict, consts: dict, setup: Setup) -> tuple[Any, dict]:
    """Gradients and metrics of the mean loss over `accumulate` equal parts; row i goes to part i % accumulate."""
    n, total = setup.config.accumulate, None
    for i in range(n):
        rows = part if n == 1 else jax.tree.map(lambda x, i=i: x[i::n], part)
        grads, metrics = jax.grad(loss_fn, has_aux=True)(params, rows, consts, setup)
        total = (grads, metrics) if total is None else jax.tree.map(jnp.add, total, (grads, metrics))
    return total if n == 1 else jax.tree.map(lambda x: x / n, total)


class Learner(NamedTuple):
    """What one update hands to the next. `going`: there was no early stop so far in this phase."""

    params: dict
    opt_state: Any
    ema: Any
    going: jax.Array


def learn(state: TrainState, items: dict, consts: dict, setup: Setup) -> tuple[TrainState, dict]:
    """`epochs` passes over the items in `minibatches` parts each; the metrics are means over the updates."""
    rl, average, tx = setup.config.rl, setup.config.elastic, setup.tx

    def follow(carry: Learner, cadence: str) -> Learner:
        """The average moves, if it does so at this cadence."""
        if not average.decay or average.cadence != cadence:
            return carry
        return carry._replace(ema=elastic.ema_update(carry.ema, carry.params, average.decay))

    def update(carry: Learner, order: jax.Array) -> tuple[Learner, dict]:
        part = jax.tree.map(lambda x: spread(x[order], setup.mesh), items)
        grads, metrics = gradients(carry.params, part, consts, setup)
        updates, opt_state = tx.update(grads, carry.opt_state, carry.params)
        new = carry._replace(params=optax.apply_updates(carry.params, updates), opt_state=opt_state)
        return stop_early(carry, follow(new, "step"), metrics), {**metrics, "grad_norm": optax.tree.norm(grads)}

    def stop_early(old: Learner, new: Learner, metrics: dict) -> Learner:
        """The early stop of trl: once approx_kl passes the limit, this update and the rest of the phase are left out."""
        if not rl.stop_kl:
            return new
        going = old.going & (metrics["approx_kl"] <= rl.stop_kl)
        return jax.tree.map(lambda a, b: jnp.where(going, a, b), new, old)._replace(going=going)

    carry, rows = Learner(state.params, state.opt_state, state.extra.get("ema", ()), jnp.bool_(True)), []
    for epoch in range(rl.epochs):
        order = jnp.arange(setup.config.batch)
        if rl.shuffle:
            order = jax.random.permutation(key_for(state.seed, state.step, f"epoch {epoch}"), order)
        carry, metrics = jax.lax.scan(update, carry, order.reshape(rl.minibatches, -1))
        after = follow(carry, "epoch")
        carry = jax.tree.map(lambda a, b, going=carry.going: jnp.where(going, a, b), after, carry) if rl.stop_kl else after
        rows.append(metrics)
    carry = follow(carry, "iteration")
    extra = {**state.extra, "ema": carry.ema} if average.decay else state.extra
    metrics = jax.tree.map(lambda *x: jnp.concatenate(x).mean(), *rows)
    return state.replace(params=carry.params, opt_state=carry.opt_state, extra=extra), metrics


def spread(x: jax.Array, mesh: Mesh) -> jax.Array:
    """Rows of a minibatch over the mesh (in a population they stay where they are)."""
    return x if batch_ways(mesh) == 1 else jax.lax.with_sharding_constraint(x, NamedSharding(mesh, BATCH))


def finish(state: TrainState, consts: dict, setup: Setup) -> tuple[TrainState, jax.Array]:
    """A reset if one is due after this iteration -> (state, whether it happened)."""
    options, critic = setup.config.elastic, OBJECTIVES[setup.config.rl.algorithm].critic
    if options.mode == "none":
        return state, jnp.bool_(False)
    do = elastic.due(state.step, options.every, options.at_zero)
    start = {"policy": consts["init"], **({"value": state.extra["value_init"]} if options.reset_critic and critic else {})}
    params, ema, opt_state = elastic.reset(
        state.params, state.extra["ema"], start, state.opt_state, do, to=options.mode,
        fresh_opt_state=setup.tx.init(state.params) if options.reset_opt else None,
    )  # fmt: skip
    return state.replace(params=params, opt_state=opt_state, extra={**state.extra, "ema": ema}), do
