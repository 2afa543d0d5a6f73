"""Golden files: outputs of the reference networks, stored with their weights and inputs, against ours (sgi/convert.py check).

A golden file is an npz of `weights/<state-dict name>`, `in/<input>`, and outputs `eval/...`, `train/...`, `grad/<weight>`.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sgi.nets import losses
from sgi.nets.augment import prepare
from sgi.nets.sgi_net import SGINet
from sgi.reference.state_dict import SIDE, from_reference, to_reference
from sgi.reference.weights import read_npz
from training.errors import UserError

TOLERANCE = 1e-4


def latent_to_ours(z):
    """Flattened latents [..., D] from C, H, W order to H, W, C order."""
    return jnp.moveaxis(z.reshape(*z.shape[:-1], -1, SIDE, SIDE), -3, -1).reshape(z.shape)


def latent_to_reference(z_HWC):
    """Latents in the reference's layout: [..., 7, 7, C] -> [..., C, 7, 7]."""
    return jnp.moveaxis(z_HWC, -1, -3)


def eval_outputs(net: SGINet, head: str, variables, x_BHWC, action_B, goal_BD) -> dict[str, jax.Array]:
    """Outputs for one observation and the action after it, under running statistics, in reference layout."""

    def forward(net):
        z = net.encode(x_BHWC, train=False)
        y = net.project(z, head)
        return {
            "eval/latent": latent_to_reference(z),
            "eval/next_latent": latent_to_reference(net.dynamics(z, action_B, train=False)),
            "eval/q_log_probs": net.q_log_probs(z),
            "eval/goal_q_log_probs": net.goal_q_log_probs(z, goal_BD),
            "eval/projection": y,
            "eval/prediction": net.predict(y),
        }

    return net.apply(variables, method=forward)


def train_outputs(net: SGINet, head: str, variables, target, x_TBHWC, action_TB, goal_BD, mask_B) -> dict[str, jax.Array]:
    """Outputs for T = K + 1 observations under batch statistics, in reference layout; action_TB[t] precedes x_TBHWC[t].

    All observations go through the target encoder as one batch and share their statistics. The goal return is in float32
    whatever the precision of the rest, because the rounding of its distances shows (see `compare`).
    """
    lead = action_TB.shape

    def online(net):
        z = net.encode(x_TBHWC[0], train=True)
        latents = net.rollout(z, action_TB[1:], train=True)
        y = net.project(latents.reshape(-1, *z.shape[1:]), head).reshape(*lead, -1)
        return net.q_log_probs(z), net.goal_q_log_probs(z, goal_BD), y, net.predict(y)

    def ema(net):
        z = net.encode(x_TBHWC.reshape(-1, *x_TBHWC.shape[2:]), train=True)
        return z.reshape(*lead, *z.shape[1:]), net.project(z, head).reshape(*lead, -1)

    z, y_ema = net.apply(target, method=ema)
    q, goal_q, y, prediction = net.apply(variables, method=online)
    logits = net.apply(variables, y[:-1], y_ema[1:], method="inverse_logits")
    z0, z1, goal_BD, mask_B = (x.reshape(lead[1], -1).astype(jnp.float32) for x in (z[0], z[1], goal_BD, mask_B))
    return {
        "train/q_log_probs": q,
        "train/goal_q_log_probs": goal_q,
        "train/spr_loss_by_step": losses.spr_loss(prediction, y_ema),
        "train/target_latents": latent_to_reference(z).reshape(*lead, -1).swapaxes(0, 1),
        "train/target_projections": y_ema.swapaxes(0, 1),
        "train/inverse_loss": losses.inverse_loss(logits, action_TB[1:]).mean(0),
        "train/goal_return": losses.goal_reward(z0, z1, goal_BD, mask_B[:, 0], discount=0.99, quirks=True)[None],
    }


def recompute(weights: Mapping[str, np.ndarray], inputs: Mapping[str, np.ndarray], dtype=jnp.float64) -> dict[str, np.ndarray]:
    """Every output a golden file may hold ('eval/...', 'train/...', 'grad/<weight>'), quirks on.

    In float64 the difference from a stored output is the rounding of the reference alone. That matters for gradients: where
    the input of a ReLU is within rounding of zero, two float32 programs may take different sides and differ by 1e-2.

    Args:
      weights: a reference state dict.
      inputs: observation uint8 [K+1, B, 4, 1, 84, 84], action int [K+1, B], goal [B, D], nonterminal [1, B].
      dtype: precision of the computation.

    Returns:
      arrays in reference layout. 'grad' is of the mean self-prediction loss over steps 1..K plus the mean inverse loss.

    Raises:
      UserError: weights or inputs that do not fit.
    """
    net, variables, target = from_reference(weights, quirks=True)
    if not (net.goal and net.inverse):
        raise UserError("the weights hold no goal head or no inverse model: not a full state dict of the reference model")
    _check_inputs(net, variables, inputs)
    head = "goal" if "goal_head" in target["params"] else "reward"
    net = net.clone(dtype=dtype)

    def cast(tree):
        return jax.tree.map(lambda x: jnp.asarray(x, dtype), tree)

    def trained(params, stats, target, *inputs):
        out = train_outputs(net, head, {"params": params, "batch_stats": stats}, target, *inputs)
        return out["train/spr_loss_by_step"][1:].mean() + out["train/inverse_loss"].mean(), out

    jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # runs once: compiling is what takes time
    with jax.enable_x64(dtype == jnp.float64):
        variables, target = cast((variables, target))
        x_TBHWC = cast(np.moveaxis(prepare(inputs["observation"][:, :, :, 0]), 2, -1))
        action_TB = jnp.asarray(inputs["action"], jnp.int32)
        goal_BD, mask_B = latent_to_ours(cast(inputs["goal"])), cast(inputs["nonterminal"][0])
        gradient, out = jit(jax.grad(trained, has_aux=True))(
            variables["params"], variables["batch_stats"], target, x_TBHWC, action_TB, goal_BD, mask_B
        )
        out |= jit(partial(eval_outputs, net, head))(variables, x_TBHWC[0], action_TB[1], goal_BD)
    gradients = {f"grad/{name}": g for name, g in to_reference(net, {"params": gradient}).items()}
    return {name: np.asarray(value) for name, value in (out | gradients).items()}


def _check_inputs(net, variables, inputs):
    rows, batch = inputs["action"].shape if "action" in inputs and inputs["action"].ndim == 2 else (0, 0)
    latent = variables["params"]["reward_head"]["advantage_1"]["kernel"].shape[0]
    shapes = {
        "action": (max(rows, 2), max(batch, 1)),
        "observation": (rows, batch, 4, 1, 84, 84),
        "goal": (batch, latent),
        "nonterminal": (1, batch),
    }
    for name, shape in shapes.items():
        if name not in inputs:
            raise UserError(f"there is no in/{name}")
        if inputs[name].shape != shape:
            raise UserError(f"in/{name} has shape {inputs[name].shape} instead of {shape}")
    if not ((inputs["action"] >= 0) & (inputs["action"] < net.num_actions)).all():
        raise UserError(f"in/action has entries outside 0..{net.num_actions - 1}")


class Error(NamedTuple):
    """The distance of an output from the stored one, relative to its largest entry, and the largest that is allowed."""

    relative: float
    allowed: float


def compare(name: str, ours: np.ndarray, theirs: np.ndarray) -> Error:
    """The error max |ours - theirs| / max |theirs|, infinite where an entry is not finite; 1e-4 is allowed.

    'train/goal_return' is 10 times a small difference of two fp32 distances near 1. If a single one of them is rounded the
    other way, the return moves by 10 * 2^-24, which can be more than 1e-4 of it: that much is allowed too.
    """
    largest = max(np.abs(theirs).max(), np.finfo(np.float32).tiny)
    error = np.abs(ours - theirs).max() / largest
    rounding = 10 * 2**-24 / largest if name == "train/goal_return" else 0.0
    return Error(float(error) if np.isfinite(error) else float("inf"), max(TOLERANCE, float(rounding)))


def check(path: Path) -> dict[str, Error]:
    """The error of every output stored in a golden file, by name. UserError if it is not a golden file."""
    entries = read_npz(path)
    parts = {p: {k.removeprefix(p): v for k, v in entries.items() if k.startswith(p)} for p in ("weights/", "in/")}
    stored = {k: v for k, v in entries.items() if k != "cfg" and not k.startswith(tuple(parts))}
    if not stored:
        raise UserError(f"{path}: there are no outputs to check")
    ours = recompute(parts["weights/"], parts["in/"])
    for name, theirs in stored.items():
        if name not in ours:
            raise UserError(f"{path}: unknown entry {name}")
        if theirs.shape != ours[name].shape:
            raise UserError(f"{path}: {name} has shape {theirs.shape} instead of {ours[name].shape}")
    return {name: compare(name, ours[name], theirs) for name, theirs in stored.items()}
