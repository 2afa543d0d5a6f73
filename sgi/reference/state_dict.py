"""The reference's PyTorch state dict (github.com/mila-iqia/SGI) as the variables of `SGINet`, and back.

The reference is NCHW with weights OIHW and (out, in), and flattens in C, H, W order; `SGINet` is NHWC with weights HWIO and
(in, out), and flattens in H, W, C order.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sgi.nets.sgi_net import NATURE_CHANNELS, RESNETS, SGINet
from training.errors import UserError

SIDE = 7  # latents are 7 x 7
REDUNDANT = ("projection.", "num_batches_tracked", "_epsilon")  # aliases of head weights, counters, the last noise drawn


class Layout(NamedTuple):
    """The layout of a weight on either side; `ours` and `reference` permute an array (numpy) there and back."""

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
    """Read a reference state dict.

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
    """The inverse: reference names -> arrays in reference layout, without the redundant entries (see `with_redundant`).

    Collections that are missing from `variables` are left out, so a gradient {'params': ...} converts too.
    """
    entries = [(entry, variables) for entry in online_entries(net)]
    if target is not None:
        head = "goal" if "goal_head" in target["params"] else "reward"
        entries += [(entry, target) for entry in target_entries(net, head)]
    return {e.name: e.layout.reference(np.asarray(_get(tree, e.path))) for e, tree in entries if e.path[0] in tree}


def with_redundant(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The state dict of a whole model (of `to_reference` with a target) plus the names that PyTorch stores besides.

    `load_state_dict` of the reference asks for them: 'projection.*', aliases of the head's first layers; for each BatchNorm the
    counter 'num_batches_tracked', 0 (without effect there); for each noisy layer the noise drawn last, zeros.
    """
    head = "goal" if "head.advantage_bias" in weights else "rl"
    result = dict(weights)
    for i, stream in enumerate(("advantage", "value")):
        prefix = f"head.{head}_{stream}.0."
        result |= {f"projection.encoders.{i}.{k.removeprefix(prefix)}": v for k, v in weights.items() if k.startswith(prefix)}
    for name, value in list(result.items()):
        layer, _, part = name.rpartition(".")
        if part == "running_mean":
            result[f"{layer}.num_batches_tracked"] = np.zeros((), np.int64)
        elif part in ("weight_mu", "bias_mu"):
            noise = part.replace("mu", "epsilon")
            result |= {f"{layer}.{noise}": np.zeros_like(value), f"{layer}.old_{noise}": np.zeros_like(value)}
    return result


def variable_shapes(net: SGINet) -> dict:
    """The variables of `net` as ShapeDtypeStructs."""
    x, action = jax.ShapeDtypeStruct((1, 84, 84, 4), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32)
    return jax.eval_shape(lambda *a: net.init(*a, method="init_all"), jax.random.key(0), x, action)


def _projection_head(net, state_dict) -> str:
    alias, first_layer = "projection.encoders.0.weight_mu", "head.{}_advantage.0.weight_mu"
    if not net.goal:
        return "reward"
    if alias not in state_dict or np.array_equal(state_dict[alias], state_dict.get(first_layer.format("goal"))):
        return "goal"
    return "reward" if np.array_equal(state_dict[alias], state_dict[first_layer.format("rl")]) else "goal"


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
