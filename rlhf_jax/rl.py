"""Reinforcement learning of a language model from scores: PPO, REINFORCE, RLOO, online DPO and IPO, Best-of-N, CoPG.

One step of the loop is one phase: a batch of rollouts (rollout.py), then `epochs` x `minibatches` updates on it, all in one
jitted program. Elastic Reset (Noukhovitch et al. 2023, algorithm 1) stands around any of them. Equations: docs/rlhf.md.

Legend: P prompts, k samples a prompt, C prompt tokens, N response tokens, T = C + N.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from models import decoder, sampling
from rlhf_jax import policy as models
from rlhf_jax.algorithms import elastic, kl, losses, masks
from rlhf_jax.algorithms.objectives import OBJECTIVES, Scored, kept
from rlhf_jax.policy import Policy
from rlhf_jax.rollouts import rollout
from rlhf_jax.rollouts.evaluate import evaluations
from rlhf_jax.rollouts.judges import open_judge
from training import optim
from training.errors import UserError
from training.method import Method, Stream, TrainState
from training.rng import key_for
from training.sharding import BATCH, batch_ways, check_batch


class World(NamedTuple):
    """What the functions of a run share: its config, policy and sampler, the critic's shape, the optimiser, the mesh."""

    config: ConfigDict
    policy: Policy
    how: rollout.Sampler
    tx: optax.GradientTransformation
    mesh: Mesh


def make(config: ConfigDict, mesh: Mesh) -> tuple[Method, Stream]:
    """The algorithm of `config.rl.algorithm` on the task of `config.data`, from the weights of `config.init_from`."""
    check(config, mesh)
    task, tokeniser = models.open_data(config)
    policy = Policy(config, models.model_config(config.model, tokeniser))
    how = rollout.sampler(config.sample, tokeniser)
    world = World(config, policy, how, optim.build(**config.optim), mesh)
    consts = models.frozen(policy, mesh, config.mesh.min_shard)
    examples = task.splits["train"]
    judge = open_judge(config.reward, examples)
    stream = rollout.stream(config, policy, how, examples.prompts, judge, tokeniser, consts, mesh)
    return make_method(world, consts, evaluations(world, task, tokeniser, consts)), stream


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


def make_method(world: World, consts: Any, evals: dict) -> Method:
    config, policy, tx = world.config, world.policy, world.tx
    control, critic = config.rl.control, OBJECTIVES[config.rl.algorithm].critic

    def init(seed: jax.Array, spec: Any) -> TrainState:
        params = {"policy": policy.fresh(key_for(0, 0, "base"))}
        if critic:
            trunk = decoder.init(key_for(0, 0, "value"), policy.cfg) if config.rl.value == "separate" else {}
            params["value"] = models.with_head(key_for(seed, 0, "value"), trunk, policy.cfg)
        extra = {"kl": jnp.float32(config.rl.kl), **copies(params)}
        return TrainState(step=jnp.int32(0), seed=jnp.uint32(seed), params=params, opt_state=tx.init(params), extra=extra)

    def copies(params: dict) -> dict:
        """NLPO's older policy; the EMA of what a reset touches; the critic's start, whose head is fresh in each run."""
        limit = {"limit": elastic.snapshot(params["policy"])} if config.rl.limit_p else {}
        if not config.elastic.decay:
            return limit
        with_critic = critic and config.elastic.reset_critic
        followed = {name: params[name] for name in (("policy", "value") if with_critic else ("policy",))}
        return {
            **limit,
            "ema": elastic.snapshot(followed),
            **({"value_init": elastic.snapshot(params["value"])} if with_critic else {}),
        }

    def warm(state: TrainState) -> TrainState:
        """The policy from `init_from`; the separate critic from `rl.value_from` (a reward model), else from the policy too."""
        params = {**state.params, "policy": jax.tree.map(jnp.copy, consts()["init"])}
        if critic and config.rl.value == "separate":
            source = config.rl.value_from or config.init_from
            trunk = models.load(source, policy.cfg, ("reward", "policy"), head=True) if source else policy.base()
            params["value"] = {**state.params["value"], **{k: v for k, v in trunk.items() if k != "head"}}
        return state.replace(params=params, opt_state=tx.init(params), extra={**state.extra, **copies(params)})

    def step(state: TrainState, batch: dict, consts: dict) -> tuple[TrainState, dict]:
        if config.rl.limit_p:
            consts = {**consts, "limit": policy.weights(state.extra["limit"], consts["frozen"])}
        items, facts = prepare(state, batch, consts, world)
        state, metrics = learn(state, items, consts, world)
        state, reset = finish(state, consts, world)
        far = facts["kl_token"] if control.kind == "rl4lms" else facts["kl"]
        rows = config.batch * config.sample.each
        beta = kl.control(control.kind, state.extra["kl"], far, target=control.target, batch=rows, horizon=control.horizon)
        extra = {**state.extra, "kl": jnp.asarray(beta, jnp.float32)}
        if config.rl.limit_p:
            due = (state.step + 1) % config.rl.limit_every == 0
            extra["limit"] = jax.tree.map(lambda a, b: jnp.where(due, a, b), state.params["policy"], extra["limit"])
        state = state.replace(step=state.step + 1, extra=extra)
        return state, {**metrics, **facts, "kl_weight": beta, "reset": reset}

    rules = () if policy.rank else decoder.RULES
    return Method(init=init, step=step, evals=evals, consts=consts, rules=rules, warm=warm)


def prepare(state: TrainState, batch: dict, consts: dict, world: World) -> tuple[dict, dict]:
    """What stays fixed during the updates: items for the loss, each [P, ...], and metrics of the rollout.

    Of the metrics 'kl', 'kl_token' and 'length' are those of the samples that are learned from.
    """
    config, policy = world.config, world.policy
    rl, objective = config.rl, OBJECTIVES[config.rl.algorithm]
    score = masks.eos_mode(batch["score"], batch["ended"], rl.eos_mode, rl.eos_value)
    facts = {
        "score": batch["score"].mean(),
        "ended": batch["ended"].mean(),
        "staleness": (state.step - batch["version"]).mean(),
    }
    if objective.keep != "all":
        chosen, tied = kept(score, objective.keep)
        batch, score = {**batch, **take(batch, chosen)}, jnp.take_along_axis(score, chosen, 1)
        facts["ties"] = tied.mean()
    real = masks.response_masks(batch["tokens"], world.how.pad)
    items = joined(batch, real.mask)
    N = batch["tokens"].shape[-1]

    def forward(function: Any) -> jax.Array:
        """function(ids [R, T], mask [R, T]) -> [R, N], over all P k rows in chunks -> [P, k, N]."""
        flat = (x.reshape(-1, x.shape[-1]) for x in (items["ids"], items["mask"]))
        return models.in_chunks(function, rl.forward_rows, *flat).reshape(real.mask.shape)

    def logps_of(trainable: Any, limit: dict | None = None) -> jax.Array:
        weights = policy.weights(trainable, consts["frozen"])
        found = forward(lambda ids, mask: response_logprobs(weights, world, ids, mask, N, limit)[0])
        return jnp.where(real.mask, found, 0)

    reference = logps_of(state.extra["ema"]["policy"] if rl.kl_reference == "ema" else consts["init"])
    sampled = jnp.where(real.mask, batch["logps"], 0)
    recomputed = None if rl.ratio_mode == "behaviour" else logps_of(state.params["policy"])
    old, weight = losses.ratio_mode(rl.ratio_mode, sampled, recomputed, cap=rl.tis_cap, mask=real.mask)
    if not objective.critic:  # one ratio a response: the cap is on the product, not on its factors
        sums = (masks.masked_sum(x, real.mask) for x in (sampled, old))
        _, weight = losses.ratio_mode(rl.ratio_mode, *sums, cap=rl.tis_cap)
    values = forward(lambda ids, mask: critic(state.params, consts, world, ids, mask, N)) if objective.critic else None
    scored = Scored(score, old, reference, real, values)
    weight = jnp.broadcast_to(weight, old.shape if objective.critic else score.shape)
    far = old - reference
    if rl.limit_p:  # ratios are those of the limited policy, the KL penalty and its measure those of the whole one
        old = logps_of(state.params["policy"], consts["limit"])
    items |= {"old": old, "weight": weight, "ref": reference, "real": real.mask}
    items |= objective.credit(scored, state.extra["kl"], rl)
    facts |= {"kl": far.sum(-1).mean(), "kl_token": masks.masked_mean(far, real.mask), "length": real.mask.sum(-1).mean()}
    return items, facts


def take(batch: dict, chosen: jax.Array) -> dict:
    """The chosen samples of each prompt: [P, k, N] -> [P, kept, N]."""
    return {name: jnp.take_along_axis(batch[name], chosen[..., None], 1) for name in ("tokens", "logps")}


def joined(batch: dict, real: jax.Array) -> dict:
    """Prompt and response side by side: {'ids' int32 [P, k, T], 'mask' bool [P, k, T]}."""
    P, k, _ = batch["tokens"].shape
    widen = lambda x: jnp.broadcast_to(x[:, None], (P, k, x.shape[-1]))  # noqa: E731
    ids = jnp.concatenate([widen(batch["prompt"]), batch["tokens"]], -1)
    return {"ids": ids, "mask": jnp.concatenate([widen(batch["prompt_mask"]), real], -1)}


def response_logprobs(
    weights: dict, world: World, ids: jax.Array, mask: jax.Array, N: int, limit: dict | None = None
) -> tuple[jax.Array, jax.Array]:
    """Tempered log p of the last N tokens, float32 [R, N], and the hidden states that predict them, [R, N, D].

    limit: weights of NLPO's older policy (Ramamurthy et al. 2023): p is that among the tokens in its nucleus. The token itself
      always counts as one of them: rounding may have put it on the other side of the edge than in the sampler.
    """
    cfg, temperature, chosen = world.policy.cfg, world.how.temperature, ids[:, -N:]
    predicting = lambda w: decoder.hidden(w, cfg, ids, mask)[:, -N - 1 : -1]  # noqa: E731
    hidden = predicting(weights)
    if limit is None:
        return decoder.chosen_logprobs(weights, cfg, hidden, chosen, temperature), hidden
    allowed = sampling.nucleus(decoder.logits(limit, cfg, predicting(limit)), world.config.rl.limit_p)
    allowed |= chosen[..., None] == jnp.arange(allowed.shape[-1])
    z = jnp.where(allowed, decoder.logits(weights, cfg, hidden) / (temperature + 1e-7), -jnp.inf)
    return jnp.take_along_axis(z, chosen[..., None], -1)[..., 0] - jax.nn.logsumexp(z, -1), hidden


def critic(params: dict, consts: dict, world: World, ids: jax.Array, mask: jax.Array, N: int) -> jax.Array:
    """The critic's value of the state before each response token: float32 [R, N]."""
    policy = world.policy
    if world.config.rl.value == "separate":
        return models.values(params["value"], policy.cfg, ids, mask)[:, -N - 1 : -1]
    hidden = decoder.hidden(policy.weights(params["policy"], consts["frozen"]), policy.cfg, ids, mask)
    return models.head(params["value"]["score"], hidden[:, -N - 1 : -1])


def loss_fn(params: dict, part: dict, consts: dict, world: World) -> tuple[jax.Array, dict]:
    """The objective's loss on some of the items."""
    policy, rl, (p, k, N) = world.policy, world.config.rl, part["real"].shape
    ids, mask = (part[name].reshape(p * k, -1) for name in ("ids", "mask"))
    weights = policy.weights(params["policy"], consts["frozen"])
    logps, hidden = response_logprobs(weights, world, ids, mask, N, consts.get("limit"))
    values = None
    if OBJECTIVES[rl.algorithm].critic:
        shared = rl.value == "head"  # on the policy's own hidden states
        values = models.head(params["value"]["score"], hidden) if shared else critic(params, consts, world, ids, mask, N)
        values = values.reshape(p, k, N)
    loss, metrics = OBJECTIVES[rl.algorithm].loss(logps.reshape(p, k, N), values, part, rl)
    return loss, {"loss": loss, **metrics}


def gradients(params: dict, part: dict, consts: dict, world: World) -> tuple[Any, dict]:
    """Of the mean loss over `accumulate` equal parts; row i goes to part i % accumulate."""
    n, total = world.config.accumulate, None
    for i in range(n):
        rows = part if n == 1 else jax.tree.map(lambda x, i=i: x[i::n], part)
        grads, metrics = jax.grad(loss_fn, has_aux=True)(params, rows, consts, world)
        total = (grads, metrics) if total is None else jax.tree.map(jnp.add, total, (grads, metrics))
    return total if n == 1 else jax.tree.map(lambda x: x / n, total)


class Learner(NamedTuple):
    """What one update hands to the next. `going`: no early stop so far in this phase."""

    params: dict
    opt_state: Any
    ema: Any
    going: jax.Array


def learn(state: TrainState, items: dict, consts: dict, world: World) -> tuple[TrainState, dict]:
    """`epochs` passes over the items in `minibatches` parts each; the metrics are means over the updates."""
    rl, average, tx = world.config.rl, world.config.elastic, world.tx

    def moved(carry: Learner, cadence: str) -> Learner:
        if not average.decay or average.cadence != cadence:
            return carry
        return carry._replace(ema=elastic.ema_update(carry.ema, carry.params, average.decay))

    def update(carry: Learner, order: jax.Array) -> tuple[Learner, dict]:
        part = jax.tree.map(lambda x: spread(x[order], world.mesh), items)
        grads, metrics = gradients(carry.params, part, consts, world)
        updates, opt_state = tx.update(grads, carry.opt_state, carry.params)
        new = carry._replace(params=optax.apply_updates(carry.params, updates), opt_state=opt_state)
        return stopped(carry, moved(new, "step"), metrics), {**metrics, "grad_norm": optax.tree.norm(grads)}

    def stopped(old: Learner, new: Learner, metrics: dict) -> Learner:
        """trl's early stop: once approx_kl passes the limit, this update and the rest of the phase are left out."""
        if not rl.stop_kl:
            return new
        going = old.going & (metrics["approx_kl"] <= rl.stop_kl)
        return jax.tree.map(lambda a, b: jnp.where(going, a, b), new, old)._replace(going=going)

    carry, rows = Learner(state.params, state.opt_state, state.extra.get("ema", ()), jnp.bool_(True)), []
    for epoch in range(rl.epochs):
        order = jnp.arange(world.config.batch)
        if rl.shuffle:
            order = jax.random.permutation(key_for(state.seed, state.step, f"epoch {epoch}"), order)
        carry, metrics = jax.lax.scan(update, carry, order.reshape(rl.minibatches, -1))
        ended = moved(carry, "epoch")
        carry = jax.tree.map(lambda a, b, going=carry.going: jnp.where(going, a, b), ended, carry) if rl.stop_kl else ended
        rows.append(metrics)
    carry = moved(carry, "iteration")
    extra = {**state.extra, "ema": carry.ema} if average.decay else state.extra
    metrics = jax.tree.map(lambda *x: jnp.concatenate(x).mean(), *rows)
    return state.replace(params=carry.params, opt_state=carry.opt_state, extra=extra), metrics


def spread(x: jax.Array, mesh: Mesh) -> jax.Array:
    """Rows of a minibatch over the mesh (in a population they stay where they are)."""
    return x if batch_ways(mesh) == 1 else jax.lax.with_sharding_constraint(x, NamedSharding(mesh, BATCH))


def finish(state: TrainState, consts: dict, world: World) -> tuple[TrainState, jax.Array]:
    """A reset if one is due after this iteration -> (state, whether it happened)."""
    options, critic = world.config.elastic, OBJECTIVES[world.config.rl.algorithm].critic
    if options.mode == "none":
        return state, jnp.bool_(False)
    do = elastic.due(state.step, options.every, options.at_zero)
    start = {"policy": consts["init"], **({"value": state.extra["value_init"]} if options.reset_critic and critic else {})}
    params, ema, opt_state = elastic.reset(
        state.params, state.extra["ema"], start, state.opt_state, do, to=options.mode,
        fresh_opt_state=world.tx.init(state.params) if options.reset_opt else None,
    )  # fmt: skip
    return state.replace(params=params, opt_state=opt_state, extra={**state.extra, "ema": ema}), do
