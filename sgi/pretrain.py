"""SGI pretraining (Schwarzer et al. 2021): self-prediction (S), goal-conditioned RL (G), inverse dynamics (I), or cloning (BC).

One step per batch of windows of recorded, reward-free play. Every equation is in docs/sgi.md; where this differs from the
reference code, and why, is there too.

Legend: B batch, K jumps, D flattened latent, P projection, A actions.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from sgi.atari.emulator import STACK, num_actions
from sgi.nets import losses
from sgi.nets.augment import augment
from sgi.nets.sgi_net import DOPAMINE, SGINet, flatten
from sgi.nets.targets import SUPPORT, frozen_statistics, mean_cosine, project, q_part, spr_part
from sgi.recordings.source import open_data
from sgi.recordings.trajectories import Windows, stack_frames, window_spec
from training import optim
from training.data import DatasetStream
from training.errors import UserError
from training.method import Method, TrainState
from training.rng import key_for
from training.sharding import batch_spec, check_batch
from training.step import make_step, mix


def build_net(config: ConfigDict) -> SGINet:
    """The network of a pretraining config, for the actions of its game."""
    if config.net.encoder in DOPAMINE:
        raise UserError(f"net.encoder {config.net.encoder!r} is for fine-tuning from scratch: take S, S-bn, M or L to pretrain")
    return SGINet(
        num_actions(config.data.game, full=config.data.full_action_space),
        goal=bool(config.loss.goal),
        inverse=bool(config.loss.inverse),
        bc=bool(config.loss.bc) and not config.loss.bc_from_values,
        noisy_std=0.0,
        quirks=config.reference_quirks,
        **{**config.net, "dtype": jnp.dtype(config.net.dtype)},
    )


def make(config: ConfigDict, mesh: Mesh) -> Method:
    """The method that `config` describes, over its recorded play."""
    check_batch(config.batch, mesh, config.accumulate)
    net, tx, weights = build_net(config), optim.build(**config.optim), config.loss
    head = "goal" if weights.goal else "reward"
    spec = batch_spec(window_spec(weights.jumps, bool(weights.goal)), config.batch, mesh)

    def init(seed: jax.Array) -> TrainState:
        image = jnp.zeros((1, 84, 84, STACK))
        variables = net.init(key_for(seed, 0, "init"), image, jnp.zeros((1,), jnp.int32), method="init_all")
        params, stats = variables["params"], variables["batch_stats"]
        extra = {"stats": stats, "spr_target": spr_part(params, stats, head)}
        if config.loss.goal:
            extra["q_target"] = q_part(params, stats)
        return TrainState(step=jnp.int32(0), seed=jnp.uint32(seed), params=params, opt_state=tx.init(params), extra=extra)

    learn = make_step(lambda *args: loss_fn(*args, net=net, config=config, head=head), tx, accumulate=config.accumulate)

    def step(state: TrainState, batch: Any, consts: Any) -> tuple[TrainState, dict]:
        new, metrics = learn(state, batch, consts)
        # The EMA of self-prediction takes the weights of before the update, as in the reference; the Q target those after it.
        extra = {
            **new.extra,
            "spr_target": mix(
                state.extra["spr_target"], spr_part(state.params, state.extra["stats"], head), config.loss.spr_tau
            ),
        }
        if config.loss.goal:
            extra["q_target"] = mix(state.extra["q_target"], q_part(new.params, new.extra["stats"]), config.loss.goal_tau)
        return new.replace(extra=extra), metrics

    def stream(consts: Any) -> DatasetStream:
        windows = Windows(
            open_data(config.data), jumps=weights.jumps, goal_window=weights.goal_window if weights.goal else None
        )
        return DatasetStream(windows, spec, seed=config.seed, workers=config.data.workers)

    return Method(spec=spec, init=init, step=step, stream=stream)


def loss_fn(
    params: dict, batch: dict, key: jax.Array, extra: dict, consts: Any, *, net: SGINet, config: ConfigDict, head: str
) -> Any:
    """The total loss and (metrics, new extra) of one batch of windows; see `Windows` for its keys."""
    weights = config.loss
    images_BK = stack_frames(batch["frames"])

    def augmented(name: str, images: jax.Array) -> jax.Array:
        return augment(jax.random.fold_in(key, NAMES.index(name)), images, **config.augment)

    variables = {"params": params, "batch_stats": extra["stats"]}
    z0, new = net.apply(variables, augmented("online", images_BK[:, 0]), train=True, method="encode", mutable=["batch_stats"])
    stats = {**extra["stats"], **new["batch_stats"]}
    total, metrics = 0.0, {}
    if weights.bc:
        loss = cloning_loss(net, variables, z0, batch["action"][:, 0], weights, metrics)
        total += weights.bc * loss
    if weights.spr or weights.inverse or weights.goal:
        targets = target_latents(net, extra["spr_target"], augmented, images_BK, batch.get("goal"))
    if weights.spr or weights.inverse:
        latents_KB, new = net.apply(
            {"params": params, "batch_stats": stats},
            z0,
            batch["action"].T,
            train=True,
            method="rollout",
            mutable=["batch_stats"],
        )
        stats = {**stats, **new["batch_stats"]}
        loss = self_prediction(net, params, extra["spr_target"], latents_KB, targets[0], batch, head, config, metrics)
        total += loss
    if weights.goal:
        views = GoalViews(
            z0,
            next_online=frozen_statistics(net, variables, augmented("double", images_BK[:, 1]), method="encode"),
            next_target=frozen_statistics(net, extra["q_target"], augmented("q_target", images_BK[:, 1]), method="encode"),
            ema_KB=targets[0],
            goals=targets[1],
        )
        total += weights.goal * goal_loss(net, variables, extra["q_target"], views, batch, key, config, metrics)
    return total, (metrics, {**extra, "stats": stats})


NAMES = ("online", "target", "goal", "q_target", "double")  # each use of augmentation has a key of its own


def target_latents(net: SGINet, target: dict, augmented: Any, images_BK: jax.Array, goal_images: jax.Array | None) -> tuple:
    """EMA latents of all K + 1 observations [K + 1, B, 7, 7, C] and, from the same forward pass, of the goals [B, 7, 7, C]."""
    B, steps = images_BK.shape[:2]
    images = [augmented("target", images_BK).swapaxes(0, 1).reshape(-1, *images_BK.shape[2:])]
    if goal_images is not None:
        images.append(augmented("goal", stack_frames(goal_images)[:, 0]))
    z = jax.lax.stop_gradient(frozen_statistics(net, target, jnp.concatenate(images), method="encode"))
    latents_KB = z[: B * steps].reshape(steps, B, *z.shape[1:])
    return latents_KB, (z[B * steps :] if goal_images is not None else None)


def self_prediction(
    net: SGINet,
    params: dict,
    target: dict,
    latents_KB: jax.Array,
    target_KB: jax.Array,
    batch: dict,
    head: str,
    config: ConfigDict,
    metrics: dict,
) -> jax.Array:
    """The losses S and I on one rollout: latents [K + 1, B, 7, 7, C] predicted, and encoded by the EMA."""
    weights, K = config.loss, config.loss.jumps
    y_KB = project(net, {"params": params}, latents_KB, head)
    target_y_KB = jax.lax.stop_gradient(project(net, target, target_KB, head))
    mask_KB = batch["mask"].T
    loss_KB = losses.spr_loss(net.apply({"params": params}, y_KB, method="predict"), target_y_KB)
    spr = (loss_KB[1:] * mask_KB[1:]).mean()
    metrics |= {"spr": spr, "spr_0": loss_KB[0].mean(), "cosine": mean_cosine(target_y_KB[0])}
    total = weights.spr * spr
    if weights.inverse:
        logits = net.apply({"params": params}, y_KB[:K], target_y_KB[1:], method="inverse_logits")
        error = losses.inverse_loss(logits, batch["action"].T)
        inverse = error.mean() if config.reference_quirks else (error * mask_KB[1:]).mean()
        right = (logits.argmax(-1) == batch["action"].T).mean(1)
        # Later steps are rolled out from a_0 .. a_{k-1}: where actions are held they can be guessed without seeing anything.
        metrics |= {"inverse": inverse, "inverse_accuracy": right.mean(), "inverse_accuracy_0": right[0]}
        total += weights.inverse * inverse
    return total


class GoalViews(NamedTuple):
    """Latents [B, 7, 7, C] of one batch, each of an augmentation of its own, as the goal loss needs them.

    now           o_0 by the online encoder, with gradient
    next_online   o_1 by the online encoder
    next_target   o_1 by the Q target's encoder
    ema_KB        all observations by the EMA of self-prediction, [K + 1, B, 7, 7, C]
    goals         the goals by the same EMA
    """

    now: jax.Array
    next_online: jax.Array
    next_target: jax.Array
    ema_KB: jax.Array
    goals: jax.Array


def goal_loss(
    net: SGINet,
    variables: dict,
    q_target: dict,
    views: GoalViews,
    batch: dict,
    key: jax.Array,
    config: ConfigDict,
    metrics: dict,
) -> jax.Array:
    """The loss G: one-step distributional double Q-learning towards goals; only Q(o_0, a_0 | g) learns."""
    weights, support = config.loss, jnp.linspace(*SUPPORT, net.atoms)
    goals = losses.perturb_goals(
        jax.random.fold_in(key, len(NAMES)),
        flatten(views.goals),
        weights.goal_noise,
        weights.goal_permute,
        config.reference_quirks,
    )
    z0, online_z1, target_z1 = views.now, views.next_online, views.next_target
    z_now, z_next = flatten(views.ema_KB[0]), flatten(views.ema_KB[1])
    mask, action = batch["mask"][:, 1], batch["action"][:, 0]
    if weights.goal_all_to_all:  # every state with every goal of the batch
        B = z0.shape[0]
        goals = jnp.tile(goals, (B, 1))
        states = (z0, z_now, z_next, mask, target_z1, online_z1, action)
        z0, z_now, z_next, mask, target_z1, online_z1, action = (jnp.repeat(x, B, 0) for x in states)
    reward = losses.goal_reward(
        z_now,
        z_next,
        goals,
        mask,
        weights.discount,
        weights.goal_scale,
        weights.goal_temperature,
        weights.goal_distance,
        config.reference_quirks,
    )
    target_q = net.apply(q_target, target_z1, goals, method="goal_q_log_probs")
    online_q = net.apply(variables, online_z1, goals, method="goal_q_log_probs")
    target = losses.double_dqn_target(online_q, target_q, reward, weights.discount * mask, support)
    log_probs = net.apply(variables, z0, goals, method="goal_q_log_probs")
    loss = losses.cross_entropy(target, losses.at_action(log_probs, action)).mean()
    metrics |= {"goal": loss, "goal_reward": jnp.abs(reward).mean()}
    return loss


def cloning_loss(
    net: SGINet, variables: dict, z0: jax.Array, action_B: jax.Array, weights: ConfigDict, metrics: dict
) -> jax.Array:
    """The loss BC: -log softmax(logits)[a_0]; logits are expected values of the reward head, or a linear layer."""
    if weights.bc_from_values:
        log_probs = net.apply(variables, z0, method="q_log_probs")
        logits = losses.expected_values(log_probs, jnp.linspace(*SUPPORT, net.atoms))
    else:
        logits = net.apply(variables, net.apply(variables, z0, "reward", method="project"), method="bc_logits")
    loss = losses.inverse_loss(logits, action_B).mean()
    metrics |= {"bc": loss, "bc_accuracy": (logits.argmax(-1) == action_B).mean()}
    return loss
