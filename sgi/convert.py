"""Weights of the reference implementation (github.com/mila-iqia/SGI, PyTorch state dict) to and from `SGINet`.

    python -m sgi.convert check FILE.npz

recomputes every output stored next to the weights in FILE.npz, prints the relative errors and exits 1 if one is above 1e-4.

The reference is NCHW with weights OIHW and (out, in), and flattens in C, H, W order; `SGINet` is NHWC with weights HWIO and
(in, out), and flattens in H, W, C order.
"""

import argparse
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sgi import losses
from sgi.augment import prepare
from sgi.nets import NATURE_CHANNELS, RESNETS, SGINet
from training.errors import UserError

TOLERANCE = 1e-4
SIDE = 7  # latents are 7 x 7
REDUNDANT = ("projection.", "num_batches_tracked", "_epsilon")  # aliases of head weights, counters, the last noise drawn


class Layout(NamedTuple):
    """How a weight is stored on either side; `ours` and `reference` permute an array (numpy) there and back."""

    ours: Callable[[np.ndarray], np.ndarray]
    reference: Callable[[np.ndarray], np.ndarray]


def _flat_to_ours(w):
    return w.reshape(len(w), -1, SIDE, SIDE).transpose(2, 3, 1, 0).reshape(-1, len(w))


def _flat_to_reference(w):
    return w.reshape(SIDE, SIDE, -1, w.shape[-1]).transpose(3, 2, 0, 1).reshape(w.shape[-1], -1)


VECTOR = Layout(lambda w: w, lambda w: w)
DENSE = Layout(lambda w: w.T, lambda w: w.T)  # linear
POINTWISE = Layout(lambda w: w[:, :, 0, 0].T, lambda w: w.T[:, :, None, None])  # 1x1 convolution
CONV = Layout(lambda w: w.transpose(2, 3, 1, 0), lambda w: w.transpose(3, 2, 0, 1))
FLAT = Layout(_flat_to_ours, _flat_to_reference)  # linear on a flattened latent


class Entry(NamedTuple):
    """One array: its name in the reference, and where `SGINet` keeps it."""

    name: str
    path: tuple[str, ...]  # from the collection down: ('params', 'encoder', ...)
    layout: Layout


def _layer(name: str, path: tuple[str, ...], layout: Layout) -> Iterator[Entry]:
    yield Entry(f"{name}.weight", ("params", *path, "kernel"), layout)
    yield Entry(f"{name}.bias", ("params", *path, "bias"), VECTOR)


def _norm(name: str, path: tuple[str, ...]) -> Iterator[Entry]:
    yield Entry(f"{name}.weight", ("params", *path, "scale"), VECTOR)
    yield Entry(f"{name}.bias", ("params", *path, "bias"), VECTOR)
    yield Entry(f"{name}.running_mean", ("batch_stats", *path, "mean"), VECTOR)
    yield Entry(f"{name}.running_var", ("batch_stats", *path, "var"), VECTOR)


def _noisy(name: str, path: tuple[str, ...], layout: Layout) -> Iterator[Entry]:
    for part, suffix in (("mu", ""), ("sigma", "_sigma")):
        yield Entry(f"{name}.weight_{part}", ("params", *path, f"kernel{suffix}"), layout)
        yield Entry(f"{name}.bias_{part}", ("params", *path, f"bias{suffix}"), VECTOR)


def _encoder(net: SGINet, name: str) -> Iterator[Entry]:
    if net.encoder not in RESNETS:
        for i in range(len(NATURE_CHANNELS)):
            yield from _layer(f"{name}.conv.{3 * i}", ("encoder", f"conv_{i}"), CONV)
            if net.encoder == "S-bn":
                yield from _norm(f"{name}.conv.{3 * i + 1}", ("encoder", f"norm_{i}"))
        return
    channels, blocks, _ = RESNETS[net.encoder]
    for group in range(len(channels)):
        for block in range(blocks):
            theirs, ours = f"{name}.layers.{group}.{block}", ("encoder", f"group{group}_block{block}")
            if block == 0:
                yield from _layer(f"{theirs}.downsample", (*ours, "skip"), CONV)
            for i, (part, layout) in enumerate((("expand", POINTWISE), ("depthwise", CONV), ("project", POINTWISE))):
                yield from _layer(f"{theirs}.conv.{3 * i}", (*ours, part), layout)
                yield from _norm(f"{theirs}.conv.{3 * i + 1}", (*ours, f"{part}_norm"))


def online_entries(net: SGINet) -> Iterator[Entry]:
    """Every array of the online network: parameters and running statistics."""
    yield from _encoder(net, "conv")
    yield from _layer("dynamics_model.initial_layer.0", ("dynamics", "conv_1"), CONV)
    yield from _norm("dynamics_model.initial_layer.2", ("dynamics", "norm"))
    yield from _layer("dynamics_model.final_layer", ("dynamics", "conv_2"), CONV)
    for prefix, bias, head in (("rl", "rl_advantage_bias", "reward_head"), ("goal", "advantage_bias", "goal_head")):
        if prefix == "goal" and not net.goal:
            continue
        yield Entry(f"head.{bias}", ("params", head, "bias"), VECTOR)
        for stream in ("advantage", "value"):
            yield from _noisy(f"head.{prefix}_{stream}.0", (head, f"{stream}_1"), FLAT)
            yield from _noisy(f"head.{prefix}_{stream}.3", (head, f"{stream}_2"), DENSE)
    if net.goal:
        for i, part, layout in ((0, "conv_1", CONV), (2, "conv_2", CONV), (5, "linear", FLAT)):
            yield from _layer(f"head.goal_conditioner.network.{i}", ("goal_head", "conditioner", part), layout)
    yield from _layer("predictor.0", ("predictor",), DENSE)
    if net.inverse:
        yield from _layer("inverse_model.network.0", ("inverse", "linear_1"), DENSE)
        yield from _layer("inverse_model.network.2", ("inverse", "linear_2"), DENSE)
    if net.bc:
        yield from _layer("bc_head.1", ("bc",), DENSE)


def target_entries(net: SGINet, head: str) -> Iterator[Entry]:
    """The EMA copies: the encoder, and the projection, which is the first layers of the 'goal' or the 'reward' head."""
    yield from _encoder(net, "target_encoder")
    for i, stream in enumerate(("advantage", "value")):
        yield from _noisy(f"target_projection.encoders.{i}", (f"{head}_head", f"{stream}_1"), FLAT)


def infer_net(state_dict: Mapping[str, np.ndarray], quirks: bool = False) -> SGINet:
    """The network whose weights these are, from names and shapes. UserError where nothing fits."""
    names = set(state_dict)

    def size(name: str, axis: int = 0) -> int:
        if name not in names:
            raise UserError(f"the weights hold no {name}: not a state dict of the reference SGI model")
        shape = state_dict[name].shape
        if axis >= len(shape) or shape[axis] == 0:
            raise UserError(f"{name} has shape {shape}: not a state dict of the reference SGI model")
        return shape[axis]

    if any(n.startswith("conv.layers.") for n in names):
        blocks = len({n.split(".")[3] for n in names if n.startswith("conv.layers.0.")})
        expansion = size("conv.layers.0.0.conv.0.weight") / size("conv.layers.0.0.conv.0.weight", 1)
        kinds = {(blocks, expansion): (kind, channels) for kind, (channels, blocks, expansion) in RESNETS.items()}
        if (blocks, expansion) not in kinds:
            raise UserError(f"the encoder has {blocks} blocks a group and expansion {expansion:g}: only {kinds} are known")
        encoder, channels = kinds[blocks, expansion]
        last = "conv.layers.2.0.downsample.weight"
    else:
        encoder, channels = ("S-bn" if "conv.conv.1.weight" in names else "S"), NATURE_CHANNELS
        last = "conv.conv.6.weight"
    atoms = size("head.rl_advantage_bias")
    return SGINet(
        num_actions=size("head.rl_advantage.3.weight_mu") // atoms,
        encoder=encoder,
        width=size(last) / channels[-1],
        hidden=size("head.rl_advantage.0.weight_mu"),
        atoms=atoms,
        goal="head.advantage_bias" in names,
        inverse="inverse_model.network.0.weight" in names,
        bc="bc_head.1.weight" in names,
        quirks=quirks,
    )


def from_reference(state_dict: Mapping[str, np.ndarray], quirks: bool = False) -> tuple[SGINet, dict, dict]:
    """Reads a reference state dict.

    Returns (net, variables, target): `variables` = {'params', 'batch_stats'} of the online network; `target` the same two
    collections for the EMA encoder and the EMA projection (the first layers of the head that the projection belongs to:
    'goal_head', or 'reward_head' in a fine-tuned model), to be used as `net.apply(target, x, train=..., method='encode')`.
    Raises UserError on missing, unknown or misshapen entries.
    """
    net = infer_net(state_dict, quirks)
    head = _projection_head(net, state_dict)
    online, target = list(online_entries(net)), list(target_entries(net, head))
    known = {entry.name for entry in (*online, *target)}
    unknown = [n for n in state_dict if n not in known and not n.startswith(REDUNDANT[0]) and not n.endswith(REDUNDANT[1:])]
    if unknown:
        raise UserError(f"unknown weight {unknown[0]}" + (f" and {len(unknown) - 1} more" if unknown[1:] else ""))
    shapes = variable_shapes(net)
    return net, _read(state_dict, online, shapes), _read(state_dict, target, shapes)


def to_reference(net: SGINet, variables: Mapping, target: Mapping | None = None) -> dict[str, np.ndarray]:
    """The inverse: reference names -> arrays in reference layout, without the redundant entries.

    Collections that are missing from `variables` are left out, so a gradient {'params': ...} converts too.
    """
    entries = [(entry, variables) for entry in online_entries(net)]
    if target is not None:
        head = "goal" if "goal_head" in target["params"] else "reward"
        entries += [(entry, target) for entry in target_entries(net, head)]
    return {e.name: e.layout.reference(np.asarray(_get(tree, e.path))) for e, tree in entries if e.path[0] in tree}


def variable_shapes(net: SGINet) -> dict:
    """The variables of `net` as ShapeDtypeStructs."""
    x, action = jax.ShapeDtypeStruct((1, 84, 84, 4), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32)
    return jax.eval_shape(lambda *a: net.init(*a, method="init_all"), jax.random.key(0), x, action)


def _projection_head(net, state_dict) -> str:
    alias, own = "projection.encoders.0.weight_mu", "head.{}_advantage.0.weight_mu"
    if not net.goal:
        return "reward"
    if alias not in state_dict or np.array_equal(state_dict[alias], state_dict.get(own.format("goal"))):
        return "goal"
    return "reward" if np.array_equal(state_dict[alias], state_dict[own.format("rl")]) else "goal"


def _get(tree, path):
    for key in path:
        tree = tree[key]
    return tree


def _read(state_dict, entries, shapes) -> dict:
    tree = {"params": {}, "batch_stats": {}}
    for name, path, layout in entries:
        if name not in state_dict:
            raise UserError(f"the weights hold no {name}")
        expected = layout.reference(np.zeros(_get(shapes, path).shape, np.bool_)).shape
        value = np.asarray(state_dict[name])
        if value.dtype.kind not in "fiu":
            raise UserError(f"{name} holds {value.dtype} instead of numbers")
        if value.shape != expected:
            raise UserError(f"{name} has shape {value.shape} where {expected} fits the other weights")
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = jnp.asarray(layout.ours(value.astype(np.float32)))
    return tree


def latent_to_ours(z):
    """Flattened latents [..., D] from C, H, W order to H, W, C order."""
    return jnp.moveaxis(z.reshape(*z.shape[:-1], -1, SIDE, SIDE), -3, -1).reshape(z.shape)


def latent_to_reference(z_HWC):
    """Latents [..., 7, 7, C] -> [..., C, 7, 7]."""
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
    """How far an output is from the stored one, relative to its largest entry, and how far it may be."""

    relative: float
    allowed: float


def compare(name: str, ours: np.ndarray, theirs: np.ndarray) -> Error:
    """max |ours - theirs| / max |theirs|, infinite where an entry is not finite; 1e-4 is allowed.

    'train/goal_return' is 10 times a small difference of two fp32 distances near 1. If a single one of them is rounded the
    other way, the return moves by 10 * 2^-24, which can be more than 1e-4 of it: that much is allowed too.
    """
    largest = max(np.abs(theirs).max(), np.finfo(np.float32).tiny)
    error = np.abs(ours - theirs).max() / largest
    rounding = 10 * 2**-24 / largest if name == "train/goal_return" else 0.0
    return Error(float(error) if np.isfinite(error) else float("inf"), max(TOLERANCE, float(rounding)))


def check(path: Path) -> dict[str, Error]:
    """The error of every output stored in a golden file, by name. UserError if it is not a golden file."""
    entries = _load(path)
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


def _load(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: not a readable npz file ({error})") from error


def main(argv: list[str] | None = None) -> int:
    """Exit code 0 when every output agrees, 1 when one does not, 2 on bad input."""
    parser = argparse.ArgumentParser(prog="python -m sgi.convert", description="Compare SGINet with the reference networks.")
    parser.add_argument("command", choices=["check"])
    parser.add_argument("file", type=Path, help="npz file with reference weights, inputs and outputs")
    try:
        errors = check(parser.parse_args(argv).file)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name, error in errors.items():
        print(f"{error.relative:9.2e}  {name}" + (f"  (allowed {error.allowed:.2e})" if error.relative > error.allowed else ""))
    worst = max(errors, key=lambda name: errors[name].relative)
    failed = [name for name, error in errors.items() if error.relative > error.allowed]
    print(f"largest relative error {errors[worst].relative:.2e} ({worst}); {len(failed)} of {len(errors)} outputs disagree")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
