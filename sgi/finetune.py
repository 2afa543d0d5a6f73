"""Fine-tuning on Atari 100k (Schwarzer et al. 2021): Rainbow with self-prediction, from scratch or from SGI weights.

One step of the loop is one agent step: store the transition, then `updates` prioritised updates, all in one jitted program. The
first batch is the random prefill, which is only stored.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from sgi.agent import rainbow, replay
from sgi.agent.actor import ActorStream, transition_spec
from sgi.agent.resets import GROUP, reset
from sgi.agent.transfer import FIRST_LAYERS, transfer
from sgi.atari.emulator import STACK, AtariVec
from sgi.atari.evaluation import episodes
from sgi.nets import losses
from sgi.nets.sgi_net import SGINet
from sgi.nets.targets import spr_part
from training import optim
from training.errors import UserError
from training.method import Eval, Method, TrainState
from training.rng import key_for
from training.sharding import BATCH, batch_ways, check_batch
from training.step import mix


def check(config: ConfigDict, mesh: Mesh) -> None:
    """Raise UserError for values that cannot work together."""
    agent = config.agent
    check_batch(config.batch, mesh)
    if agent.first_layers not in FIRST_LAYERS:
        raise UserError(f"agent.first_layers is {agent.first_layers!r}: choose one of {', '.join(FIRST_LAYERS)}")
    if not max(1, rainbow.longest_horizon(agent), agent.jumps) < agent.prefill <= agent.capacity:
        raise UserError(f"agent.prefill is {agent.prefill}: take more than n_step and jumps, and at most the capacity")
    if agent.target_acts and not has_target(agent):
        raise UserError("agent.target_acts needs a target of its own: set agent.target_tau below 1")
    if agent.resets.every and GROUP not in config.optim.groups:
        raise UserError(f"agent.resets needs an optimiser group {GROUP!r} of what is kept: take the variant sr_spr or bbf")
    if config.sources.init and config.net.head == "shared":
        raise UserError("net.head 'shared' has no pretrained form: take net.head='dueling' with sources.init")
    if agent.cache_features and (agent.spr or not agent.freeze_encoder):
        raise UserError(
            "agent.cache_features needs agent.freeze_encoder=True and agent.spr=0: cached latents cannot be learned from"
        )


def observation_spec(config: ConfigDict, net: SGINet) -> jax.ShapeDtypeStruct:
    """Shape and type of an observation in the replay: a frame, or the latent of a frozen encoder."""
    if not config.agent.cache_features:
        return jax.ShapeDtypeStruct((84, 84), jnp.uint8)
    image = jnp.zeros((1, 84, 84, STACK))
    z, _ = jax.eval_shape(lambda: net.init_with_output(jax.random.key(0), image, train=False, method="encode"))
    return jax.ShapeDtypeStruct(z.shape[1:], jnp.float16)


def make(config: ConfigDict, mesh: Mesh) -> Method:
    """The agent that `config` describes, and the game it plays."""
    check(config, mesh)
    net, tx = rainbow.build_net(config), optim.build(**config.optim)
    spec = transition_spec(observation_spec(config, net), mesh)

    def random(key: jax.Array) -> dict:
        return net.init(key, jnp.zeros((1, 84, 84, STACK)), jnp.zeros((1,), jnp.int32), method="init_all")

    def init(seed: jax.Array) -> TrainState:
        variables = random(key_for(seed, 0, "init"))
        params, stats = variables["params"], variables.get("batch_stats", {})
        extra = {
            "stats": stats,
            "spr_target": spr_part(params, stats, "reward"),
            "replay": replay.create(config.agent.capacity, spec.observation.shape[1:], spec.observation.dtype),
        }
        if has_target(config.agent):
            extra["q_target"] = params
        extra["since_reset"] = jnp.int32(0)  # updates
        return TrainState(step=jnp.int32(0), seed=jnp.uint32(seed), params=params, opt_state=tx.init(params), extra=extra)

    def step(state: TrainState, batch: replay.Transition, consts: Any) -> tuple[TrainState, dict]:
        state = state.replace(step=state.step + 1, extra={**state.extra, "replay": replay.add(state.extra["replay"], batch)})
        if batch.action.shape[0] > 1:  # the prefill
            return state, {"agent_steps": state.extra["replay"].count}
        if config.agent.resets.every:
            state = reset(state, config.agent, lambda key: random(key)["params"], tx)
        metrics = {}
        for i in range(config.agent.updates):  # unrolled: XLA's CPU convolutions are about 9x slower inside a loop
            state, metrics = update(
                state, jax.random.fold_in(key_for(state.seed, state.step, "update"), i), config, net, tx, mesh
            )
        return state, {**metrics, "agent_steps": state.extra["replay"].count}

    def stream(consts: Any) -> ActorStream:
        policy = rainbow.behaviour(net, config.agent)
        return ActorStream(open_game(config), policy, spec, prefill=config.agent.prefill, seed=config.seed, mesh=mesh)

    def warm(state: TrainState, consts: Any) -> TrainState:
        return transfer(state, config.sources.init, game=config.env.game, first_layers=config.agent.first_layers)

    return Method(
        spec=spec,
        init=init,
        step=step,
        stream=stream,
        evals={"eval": Eval(config.eval.every, evaluator(config, net))},
        warm=warm if config.sources.init else None,
    )


def open_game(config: ConfigDict) -> AtariVec:
    """The game that the agent plays as it learns. Raises UserError for an agent that lacks the weights it must start from."""
    if config.agent.pretrained and not config.sources.init:
        raise UserError(
            "this variant starts from pretrained weights: give --config.sources.init=WORKDIR, or take the variant 'none'"
        )
    env = config.env
    return AtariVec(
        env.game, 1, seed=config.seed, noop_max=env.noop_max, sticky=env.sticky, full_action_space=env.full_action_space
    )


def has_target(agent: ConfigDict) -> bool:
    """True if the Q target is not a copy of the current weights."""
    return agent.target_tau < 1 or agent.target_every > 1


def update(
    state: TrainState, key: jax.Array, config: ConfigDict, net: SGINet, tx: optax.GradientTransformation, mesh: Mesh
) -> tuple[TrainState, dict]:
    """One prioritised update: sample, learn, write priorities, move the targets."""
    agent, extra = config.agent, state.extra
    sample_key, loss_key = jax.random.split(key)
    ahead = max(rainbow.longest_horizon(agent), agent.jumps)
    slots, drawn = replay.sample(extra["replay"], sample_key, config.batch, ahead=ahead, behind=STACK - 1)
    fraction = jnp.clip(state.step / agent.beta_steps, 0, 1)
    beta = agent.beta[0] + fraction * (agent.beta[1] - agent.beta[0])
    draw = rainbow.Draw(slots, losses.importance_weights(drawn, beta))
    loss_fn = rainbow.cached_loss if agent.cache_features else rainbow.update_loss

    def constrain(x: jax.Array) -> jax.Array:  # sampled rows are spread over the mesh (and in a population stay where they are)
        return x if batch_ways(mesh) == 1 else jax.lax.with_sharding_constraint(x, NamedSharding(mesh, BATCH))

    draw = jax.tree.map(constrain, draw)
    (loss, (metrics, stats, priorities)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
        state.params, extra, draw, loss_key, net=net, config=config, constrain=constrain
    )
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    extra = {
        **extra,
        "stats": stats,
        "replay": replay.reprioritise(extra["replay"], slots, priorities),
        "spr_target": mix(extra["spr_target"], spr_part(state.params, extra["stats"], "reward"), agent.spr_tau),
    }
    extra["since_reset"] = extra["since_reset"] + 1
    if "q_target" in extra:
        moved = mix(extra["q_target"], params, agent.target_tau)
        due = extra["since_reset"] % agent.target_every == 0
        extra["q_target"] = (
            moved if agent.target_every == 1 else jax.tree.map(partial(jnp.where, due), moved, extra["q_target"])
        )
    metrics = {"loss": loss, **metrics, "grad_norm": optax.tree.norm(grads)}
    return state.replace(params=params, opt_state=opt_state, extra=extra), metrics


def evaluator(config: ConfigDict, net: SGINet) -> Any:
    """Scores of `config.eval.episodes` full games with mean weights and epsilon 0.001."""
    return episodes(config, rainbow.evaluation_policy(net, config.agent, config.eval.epsilon))
