"""The pieces whose conventions come from PyTorch, against PyTorch: layers, running statistics, gradients, Adam, clipping."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sgi import convert
from sgi.agent.transfer import load_pretrained
from sgi.nets import layers, losses
from sgi.nets.sgi_net import SGINet
from sgi.reference import state_dict as reference
from sgi.reference import weights
from tests.sgi.random_weights import random_variables
from training import optim
from training.errors import UserError

torch = pytest.importorskip("torch", reason="the oracle: make parity installs it")
pytestmark = pytest.mark.parity
NN, F = torch.nn, torch.nn.functional


class Residual(NN.Module):
    """An inverted-residual block in PyTorch's own layers, named as in the reference."""

    def __init__(self, i, o, stride, expansion):
        super().__init__()
        h = round(i * expansion)
        self.conv = NN.Sequential(
            NN.Conv2d(i, h, 1), NN.BatchNorm2d(h), NN.ReLU(),
            NN.Conv2d(h, h, 3, stride, 1, groups=h), NN.BatchNorm2d(h), NN.ReLU(),
            NN.Conv2d(h, o, 1), NN.BatchNorm2d(o),
        )  # fmt: skip
        if stride > 1:
            self.downsample = NN.Conv2d(i, o, stride, stride)

    def forward(self, x):
        return self.conv(x) + (self.downsample(x) if hasattr(self, "downsample") else x)


class Encoder(NN.Module):
    def __init__(self, channels, blocks, expansion):
        super().__init__()
        self.layers, i = NN.ModuleList(), 4
        for o, stride in zip(channels, (3, 2, 2), strict=True):
            group = [Residual(i if b == 0 else o, o, stride if b == 0 else 1, expansion) for b in range(blocks)]
            self.layers.append(NN.Sequential(*group))
            i = o

    def forward(self, x):
        for group in self.layers:
            x = group(x)
        return x


@pytest.fixture(scope="module")
def pair():
    """The same randomly perturbed narrow encoder M on both sides, in float64 so that only conventions can differ."""
    net = SGINet(5, encoder="M", width=0.25, hidden=8, goal=False, inverse=False, quirks=True)
    x = np.random.default_rng(0).random((3, 84, 84, 4))
    with jax.enable_x64(True):
        variables = net.init(jax.random.key(0), jnp.asarray(x, jnp.float32), jnp.zeros(3, jnp.int32), method="init_all")
        rng = np.random.default_rng(1)
        variables = jax.tree.map(lambda v: jnp.asarray(np.asarray(v) + 0.1 * rng.random(v.shape), jnp.float64), variables)
        names = reference.to_reference(net, variables)
    encoder = Encoder((8, 16, 16), 3, 2).double()
    state = {k.removeprefix("conv."): torch.tensor(np.asarray(v)) for k, v in names.items() if k.startswith("conv.")}
    missing, unexpected = encoder.load_state_dict(state, strict=False)
    assert not unexpected and all("num_batches_tracked" in k for k in missing)
    return net, variables, encoder, x


def scaled(z):
    flat = z.flatten(1)
    low, high = flat.min(1, keepdim=True)[0], flat.max(1, keepdim=True)[0]
    return ((flat - low) / (high - low)).view_as(z)


def test_encoder_outputs_statistics_and_gradients(pair):
    net, variables, encoder, x = pair
    encoder.train()
    images = torch.tensor(x.transpose(0, 3, 1, 2))
    z = scaled(encoder(images))
    weight = torch.tensor(np.random.default_rng(2).random(z.shape))
    (z * weight).sum().backward()
    with jax.enable_x64(True):

        def loss(params):
            found, new = net.apply(
                {**variables, "params": params}, jnp.asarray(x), train=True, method="encode", mutable=["batch_stats"]
            )
            return (found * weight.numpy().transpose(0, 2, 3, 1)).sum(), (found, new)

        (_, (found, new)), grads = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        stats = {**variables["batch_stats"], **new["batch_stats"]}
        after = reference.to_reference(net, {"params": variables["params"], "batch_stats": stats})
        grads = reference.to_reference(net, {"params": grads, "batch_stats": stats})
    np.testing.assert_allclose(found.transpose(0, 3, 1, 2), z.detach().numpy(), atol=1e-6)
    for name, value in encoder.named_buffers():  # BatchNorm's unbiased running variance
        if "running" in name:
            np.testing.assert_allclose(after[f"conv.{name}"], value.numpy(), rtol=1e-6, atol=1e-7, err_msg=name)
    largest = max(float(p.grad.abs().max()) for p in encoder.parameters())
    for name, value in encoder.named_parameters():
        np.testing.assert_allclose(grads[f"conv.{name}"], value.grad.numpy(), atol=1e-5 * largest, err_msg=name)


def test_minmax_gradient_with_ties():
    x = np.array([[0.0, 2.0, 2.0, 1.0, 0.0]], np.float32)
    t = torch.tensor(x, requires_grad=True)
    weight = np.array([[1.0, 2.0, 3.0, 4.0, 5.0]], np.float32)
    low, high = t.min(1, keepdim=True)[0], t.max(1, keepdim=True)[0]
    (((t - low) / (high - low)) * torch.tensor(weight)).sum().backward()
    found = jax.grad(lambda v: (layers.minmax(v, eps=0.0) * weight).sum())(jnp.asarray(x))
    np.testing.assert_allclose(found, t.grad.numpy(), atol=1e-6)


def test_normalise_is_f_normalize_with_the_references_floor():
    x = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    x[0] *= 1e-5
    np.testing.assert_allclose(
        losses.normalise(jnp.asarray(x)), F.normalize(torch.tensor(x), dim=-1, eps=1e-3).numpy(), atol=1e-6
    )


@pytest.mark.parametrize("clip", [None, 1.0])
def test_adam_and_clipping(clip):
    rng = np.random.default_rng(0)
    start, grads = rng.normal(size=8).astype(np.float32), rng.normal(size=(10, 8)).astype(np.float32) * 3
    p = torch.tensor(start, requires_grad=True)
    adam = torch.optim.Adam([p], lr=1e-2, eps=1.5e-4)
    tx, params = optim.build(lr=1e-2, eps=1.5e-4, clip=clip), jnp.asarray(start)
    state = tx.init(params)
    for g in grads:
        p.grad = torch.tensor(g)
        if clip:
            torch.nn.utils.clip_grad_norm_([p], clip)
        adam.step()
        updates, state = tx.update(jnp.asarray(g), state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params, p.detach().numpy(), atol=2e-6)


def test_default_initialisation_has_pytorchs_range():
    """PyTorch's default for layers: uniform in +-1/sqrt(fan in), for weights and biases."""
    linear = NN.Linear(400, 300)
    variables = layers.Dense(300).init(jax.random.key(0), jnp.zeros((1, 400)))["params"]
    for ours, theirs in ((variables["kernel"], linear.weight), (variables["bias"], linear.bias)):
        assert abs(float(jnp.abs(ours).max()) / float(theirs.detach().abs().max()) - 1) < 0.05
        assert abs(float(ours.std()) / float(theirs.detach().std()) - 1) < 0.1


@pytest.fixture(scope="module")
def state_dict():
    """All names of the reference, as tensors."""
    net = SGINet(4, "S-bn", width=0.25, hidden=4, atoms=11)
    variables, ema = random_variables(net, 0), random_variables(net, 1)
    head = {name: ema["params"]["goal_head"][name] for name in ("advantage_1", "value_1")}
    stats = {"encoder": ema["batch_stats"]["encoder"]}
    target = {"params": {"encoder": ema["params"]["encoder"], "goal_head": head}, "batch_stats": stats}
    arrays = reference.with_redundant(reference.to_reference(net, variables, target))
    return {name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}


def assert_same_arrays(found, expected):
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert value.dtype == np.asarray(expected[name]).dtype, name
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


WRAPPED = {
    "flat": lambda d: d,
    "the reference's own": lambda d: {"model": d, "optim": {"state": {}, "param_groups": [{"lr": 1e-4}]}},
    "model_state_dict": lambda d: {"epoch": 3, "model_state_dict": d},
    "state_dict": lambda d: {"state_dict": d, "args": None},
    "agent of rlpyt": lambda d: {"agent_state_dict": {"model": d, "target": {}}, "itr": 7},
    "agent": lambda d: {"agent_state_dict": {"model_state_dict": d}},
    "flat agent": lambda d: {"agent_state_dict": d},
    "DistributedDataParallel": lambda d: {"module." + k: v for k, v in d.items()},
    "compiled": lambda d: {"model": {"_orig_mod.module." + k: v for k, v in d.items()}},
    "parameters": lambda d: {k: NN.Parameter(v) if v.is_floating_point() else v for k, v in d.items()},
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_state_dicts_as_training_scripts_store_them(tmp_path, state_dict, kind):
    torch.save(WRAPPED[kind](state_dict), tmp_path / "a.pt")
    assert_same_arrays(weights.read(tmp_path / "a.pt"), state_dict)


def test_transfer_from_a_torch_file_equals_transfer_from_npz(tmp_path, state_dict):
    torch.save(state_dict, tmp_path / "a.pth")
    convert.main(["to-npz", str(tmp_path / "a.pth"), str(tmp_path / "b.npz")])
    convert.main(["to-pt", str(tmp_path / "b.npz"), str(tmp_path / "c.pt")])
    assert_same_arrays(weights.read(tmp_path / "b.npz"), state_dict)
    again = torch.load(tmp_path / "c.pt", weights_only=True)
    assert again.keys() == state_dict.keys()
    assert all(torch.equal(again[k], v) and again[k].dtype == v.dtype for k, v in state_dict.items())
    a, b, c = (load_pretrained(str(tmp_path / name), "Pong") for name in ("a.pth", "b.npz", "c.pt"))
    jax.tree.map(np.testing.assert_array_equal, a, b)
    jax.tree.map(np.testing.assert_array_equal, a, c)


def test_half_precision_is_read(tmp_path, state_dict):
    torch.save({k: v.bfloat16() if v.is_floating_point() else v for k, v in state_dict.items()}, tmp_path / "a.pt")
    found = weights.read(tmp_path / "a.pt")["predictor.0.weight"]
    np.testing.assert_array_equal(found, state_dict["predictor.0.weight"].bfloat16().float().numpy())


def test_exported_encoder_loads_strictly(state_dict):
    """PyTorch's own modules ask for the counters of BatchNorm too."""
    conv = NN.Sequential(
        NN.Conv2d(4, 8, 8, 4), NN.BatchNorm2d(8), NN.ReLU(),
        NN.Conv2d(8, 16, 4, 2), NN.BatchNorm2d(16), NN.ReLU(),
        NN.Conv2d(16, 16, 3, 1), NN.BatchNorm2d(16), NN.ReLU(),
    )  # fmt: skip
    conv.load_state_dict({k.removeprefix("conv.conv."): v for k, v in state_dict.items() if k.startswith("conv.conv.")})


class Malicious:
    """Unpickled without care, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_pickled_code_is_not_run(tmp_path, state_dict):
    bomb = tmp_path / "bomb"
    for content in (Malicious(bomb), {"model": state_dict, "optim": Malicious(bomb)}):
        torch.save(content, tmp_path / "a.pt")
        with pytest.raises(UserError, match="Python objects in it: only tensors are read") as caught:
            weights.read(tmp_path / "a.pt")
        assert "\n" not in str(caught.value) and not bomb.exists()
    torch.load(tmp_path / "a.pt", weights_only=False)
    assert bomb.exists()  # so the file was one that would have run


def test_torch_files_that_hold_no_state_dict(tmp_path, state_dict):
    path = tmp_path / "a.pt"
    torch.save(state_dict, path)
    damaged = [b"", b"no tensors here", path.read_bytes()[:5000]]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"a\.pt: no PyTorch file, or damaged") as caught:
            weights.read(path)
        assert "\n" not in str(caught.value)
    for content in (torch.zeros(3), [torch.zeros(3)], {}, {"weights": state_dict}, {"model": {"lr": 0.1}}, {3: torch.zeros(3)}):
        torch.save(content, path)
        with pytest.raises(UserError, match=r"a\.pt holds no state dict"):
            weights.read(path)
    torch.save({"a": torch.zeros(3).to_sparse()}, path)
    with pytest.raises(UserError, match="a is not a plain tensor"):
        weights.read(path)
    torch.save({"a": torch.zeros(3)}, path)
    with pytest.raises(UserError, match=r"hold no head\.rl_advantage_bias"):
        load_pretrained(str(path), "Pong")
