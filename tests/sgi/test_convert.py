"""Reference weights: golden outputs, round trips for every kind of encoder, layouts, and bad files."""

import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgi import convert, finetune
from sgi.agent.transfer import transfer
from sgi.nets.sgi_net import SGINet
from sgi.reference import golden, state_dict, weights
from tests.sgi.random_weights import random_variables
from tests.sgi.variants import load
from training import config as configs
from training.cli import guarded
from training.errors import UserError
from training.sharding import make_mesh
from training.testing import train

GRADIENTS = ("grad/conv.conv.0.weight", "grad/predictor.0.bias")
NETS = {
    "L": SGINet(9, "L", width=0.25, hidden=6, atoms=11),
    "M": SGINet(4, "M", width=1.5, hidden=4, atoms=11),
    "S": SGINet(18, "S", width=0.5, hidden=4),
    "S-bn": SGINet(9, "S-bn", width=0.25, hidden=6, atoms=11, bc=True),
}


def with_target(net, head="goal"):
    """Random variables and an EMA copy of the parts that have one."""
    variables, ema = random_variables(net, 0), random_variables(net, 1)
    stats = {name: tree for name, tree in ema["batch_stats"].items() if name == "encoder"}
    first = {name: ema["params"][f"{head}_head"][name] for name in ("advantage_1", "value_1")}
    return variables, {"params": {"encoder": ema["params"]["encoder"], f"{head}_head": first}, "batch_stats": stats}


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("kind", NETS)
def test_round_trip(kind):
    net = NETS[kind]
    variables, target = with_target(net)
    weights = state_dict.to_reference(net, variables, target)
    inferred, variables_found, target_found = state_dict.from_reference(weights)
    assert inferred == net
    assert_equal(variables_found, variables)
    assert_equal(target_found, target)


def test_projection_of_a_fine_tuned_model():
    """Here `projection` is an alias of the reward head's first layers, so its EMA copy belongs to that head."""
    net = NETS["S"]
    variables, target = with_target(net, "reward")
    weights = state_dict.to_reference(net, variables, target)
    weights["projection.encoders.0.weight_mu"] = weights["head.rl_advantage.0.weight_mu"]
    assert_equal(state_dict.from_reference(weights)[2], target)


def test_reference_shapes():
    """Spot checks of names and PyTorch shapes, by hand."""
    shapes = {name: w.shape for name, w in state_dict.to_reference(NETS["L"], *with_target(NETS["L"])).items()}
    expected = {  # width 0.25: 12, 24, 24 channels
        "conv.layers.0.0.conv.0.weight": (16, 4, 1, 1),
        "conv.layers.0.0.downsample.weight": (12, 4, 3, 3),
        "conv.layers.2.4.conv.3.weight": (96, 1, 3, 3),
        "conv.layers.2.4.conv.7.running_var": (24,),
        "target_encoder.layers.1.0.downsample.weight": (24, 12, 2, 2),
        "dynamics_model.initial_layer.0.weight": (24, 24 + 9, 3, 3),
        "head.rl_advantage.0.weight_mu": (6, 24 * 49),
        "head.goal_advantage.3.weight_sigma": (9 * 11, 6),
        "head.goal_conditioner.network.5.weight": (2 * 2 * 6, 48 * 49),
        "inverse_model.network.0.weight": (256, 2 * 12),
        "target_projection.encoders.1.bias_mu": (6,),
    }
    assert {name: shapes[name] for name in expected} == expected
    nature = state_dict.to_reference(NETS["S-bn"], *with_target(NETS["S-bn"]))
    assert nature["conv.conv.3.weight"].shape == (16, 8, 4, 4) and nature["conv.conv.4.running_mean"].shape == (16,)


def test_nature_in_pytorch_layout():
    """The same numbers from the reference weights by NCHW convolutions and a C, H, W flatten."""
    net = NETS["S-bn"]
    variables, target = with_target(net)
    w = state_dict.to_reference(net, variables, target)
    x = np.random.default_rng(2).random((2, 84, 84, 4), np.float32)

    def reference(w, x):
        y = x.transpose(0, 3, 1, 2)
        for i, stride in zip((0, 3, 6), (4, 2, 1), strict=True):
            dimensions = ("NCHW", "OIHW", "NCHW")
            y = jax.lax.conv_general_dilated(
                y, w[f"conv.conv.{i}.weight"], (stride,) * 2, "VALID", dimension_numbers=dimensions
            )
            bias, scale, shift, mean, var = (
                w[f"conv.conv.{name}"][:, None, None]
                for name in (f"{i}.bias", *(f"{i + 1}.{part}" for part in ("weight", "bias", "running_mean", "running_var")))
            )
            y = jnp.maximum((y + bias - mean) / jnp.sqrt(var + 1e-5) * scale + shift, 0)
        low, high = (f(y, axis=(1, 2, 3), keepdims=True) for f in (jnp.min, jnp.max))
        flat = ((y - low) / (high - low)).reshape(2, -1)
        hidden = [flat @ w[f"head.goal_{s}.0.weight_mu"].T + w[f"head.goal_{s}.0.bias_mu"] for s in ("advantage", "value")]
        return jnp.concatenate(hidden, 1)

    def ours(variables, x):
        return net.apply(variables, method=lambda net: net.project(net.encode(x, train=False), "goal"))

    expected, actual = jax.jit(lambda *a: (reference(a[0], a[2]), ours(a[1], a[2])))(w, variables, x)
    np.testing.assert_allclose(actual, expected, atol=1e-4)


@pytest.fixture(scope="module")
def file():
    """A file of the golden kind, made from our own outputs."""
    net = SGINet(9, "S-bn", width=0.125, hidden=4, atoms=11)
    rng = np.random.default_rng(3)
    inputs = {
        "observation": rng.integers(0, 256, (2, 3, 4, 1, 84, 84), np.uint8),
        "action": rng.integers(0, 9, (2, 3)),
        "goal": rng.random((3, 8 * 49), np.float32),
        "nonterminal": np.array([[1.0, 0, 1]], np.float32),
    }
    weights = state_dict.to_reference(net, *with_target(net))
    outputs = golden.recompute(weights, inputs)
    outputs_and_gradients = {k: v for k, v in outputs.items() if not k.startswith("grad/") or k in GRADIENTS}
    return {f"weights/{k}": v for k, v in weights.items()} | {
        f"in/{k}": v for k, v in inputs.items()
    } | outputs_and_gradients, outputs


def test_single_precision(file):
    """The nets in float32, as they are trained, against the float64 of the check."""
    parts = {p: {k.removeprefix(p): v for k, v in file[0].items() if k.startswith(p)} for p in ("weights/", "in/")}
    net, variables, _ = state_dict.from_reference(parts["weights/"], quirks=True)
    x = np.moveaxis(parts["in/"]["observation"][0, :, :, 0], 1, -1) / np.float32(255)
    goal = golden.latent_to_ours(jnp.asarray(parts["in/"]["goal"]))
    actual = jax.jit(lambda v, x, goal: golden.eval_outputs(net, "goal", v, x, parts["in/"]["action"][1], goal))(
        variables, x, goal
    )
    assert max(golden.compare(k, np.asarray(v), file[1][k]).relative for k, v in actual.items()) < 1e-5


def run(monkeypatch, *argv):
    """Exit code of `python -m sgi.convert argv`."""
    monkeypatch.setattr("sys.argv", ["convert", *map(str, argv)])
    try:
        guarded(convert.main)
    except SystemExit as stop:
        return stop.code
    return 0


def check(tmp_path, monkeypatch, entries, outputs=None):
    """Exit code of the command; `outputs` spares computing them again."""
    if outputs is not None:
        monkeypatch.setattr(golden, "recompute", lambda weights, inputs: outputs)
    np.savez(tmp_path / "file.npz", **entries)
    return run(monkeypatch, "check", tmp_path / "file.npz")


def test_check_passes_and_lists_every_output(tmp_path, monkeypatch, file, capsys):
    assert check(tmp_path, monkeypatch, *file) == 0
    lines = capsys.readouterr().out.splitlines()
    stored = [k for k in file[0] if k.startswith(("eval/", "train/", "grad/"))]
    assert len(stored) == 6 + 7 + 2
    assert [line.split()[1] for line in lines[:-1]] == stored
    assert lines[-1].startswith("largest relative error 0.00e+00")


@pytest.mark.parametrize("name", ["eval/next_latent", "train/goal_return", "grad/predictor.0.bias"])
def test_check_fails_on_a_wrong_output(tmp_path, monkeypatch, file, capsys, name):
    entries = {**file[0], name: file[0][name] * np.float32(1.01)}
    assert check(tmp_path, monkeypatch, entries, file[1]) == 1
    assert f"({name}); 1 of 15 outputs disagree" in capsys.readouterr().out
    entries[name] = np.full_like(file[0][name], np.nan)
    assert check(tmp_path, monkeypatch, entries, file[1]) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights/head.extra": np.zeros(3)}, "unknown weight head.extra"),
        ({"weights/predictor.0.bias": np.zeros(3)}, "predictor.0.bias has shape (3,) where (8,) fits"),
        ({"weights/predictor.0.bias": None}, "hold no predictor.0.bias"),
        ({"weights/predictor.0.bias": np.array(["a"] * 8)}, "instead of numbers"),
        ({"weights/target_projection.encoders.1.bias_mu": None}, "hold no target_projection.encoders.1.bias_mu"),
        ({"weights/head.rl_advantage_bias": None}, "hold no head.rl_advantage_bias"),
        ({"weights/conv.conv.6.weight": np.zeros(())}, "conv.conv.6.weight has shape ()"),
        ({"in/goal": None}, "no in/goal"),
        ({"in/observation": np.zeros((2, 3, 4, 84, 84), np.uint8)}, "in/observation has shape"),
        ({"in/action": np.full((2, 3), 9)}, "in/action has entries outside 0..8"),
    ],
)
def test_bad_contents(tmp_path, monkeypatch, file, capsys, change, message):
    entries = {k: v for k, v in {**file[0], **change}.items() if v is not None}
    assert check(tmp_path, monkeypatch, entries) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize("name", ["eval/nothing", "other"])
def test_unknown_outputs(tmp_path, monkeypatch, file, capsys, name):
    assert check(tmp_path, monkeypatch, {**file[0], name: np.zeros(2)}, file[1]) == 2
    assert f"unknown entry {name}" in capsys.readouterr().err


def test_unreadable_files(tmp_path, monkeypatch, capsys):
    (tmp_path / "text.npz").write_text("no arrays here")
    np.save(tmp_path / "single.npy", np.zeros(3))
    np.savez(tmp_path / "whole.npz", a=np.random.default_rng(0).random(1000))
    (tmp_path / "half.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:4000])
    (tmp_path / "folder.npz").mkdir()
    for name in ("missing.npz", "text.npz", "single.npy", "half.npz", "folder.npz"):
        assert run(monkeypatch, "check", tmp_path / name) == 2
        error = capsys.readouterr().err
        assert name in error and error.count("\n") == 1
        with pytest.raises(UserError, match=name):
            weights.read(tmp_path / name)


def test_unknown_encoder():
    weights = state_dict.to_reference(NETS["M"], *with_target(NETS["M"]))
    weights["conv.layers.0.3.conv.0.weight"] = weights["conv.layers.0.2.conv.0.weight"]
    with pytest.raises(UserError, match="4 blocks a group and expansion 2"):
        state_dict.from_reference(weights)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Workdirs of a pretraining and of a fine-tuning run, with checkpoints at 1 and 2 updates."""
    folder = tmp_path_factory.mktemp("runs")
    pretrain = {"data__game": "Boxing", "checkpoint__every": 1}
    train(load("pretrain:tiny", **pretrain), folder / "pretrain", stop_after=2)
    train(load("finetune:tiny", env__game="Boxing", checkpoint__every=1), folder / "finetune", stop_after=2)
    return folder


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_export_and_back(runs, tmp_path, kind, monkeypatch, capsys):
    """A fine-tuning run that starts from the exported file has the weights of one that starts from the workdir."""
    out = tmp_path / "new" / "out.npz"
    assert run(monkeypatch, "export", runs / kind, out) == 0
    note = "without goal head and inverse model, which the run does not have: the reference needs load_compat_mode=True and"
    assert (f"{note} load_head_to=0 to load it" in capsys.readouterr().out) == (kind == "finetune")
    config = load("finetune:tiny", env__game="Boxing", seed=5)
    state = jax.jit(finetune.make(config, make_mesh(1)).init)(jnp.uint32(5))
    for first_layers in ("goal", "reward"):
        ours, theirs = (transfer(state, str(source), game="Boxing", first_layers=first_layers) for source in (runs / kind, out))
        assert_equal(theirs, ours)
        assert not np.array_equal(theirs.params["encoder"]["conv_0"]["kernel"], state.params["encoder"]["conv_0"]["kernel"])


def test_export_of_a_step(runs):
    newest, last, first = (convert.export(str(runs / "pretrain"), step)[1]["predictor.0.bias"] for step in (None, 2, 1))
    assert np.array_equal(newest, last) and not np.array_equal(first, last)
    with pytest.raises(UserError, match="no checkpoint of step 7"):
        convert.export(str(runs / "pretrain"), 7)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (load("finetune:bbf"), "encoder 'impala', head 'shared'; it cannot be exported"),
        (load("finetune:drq"), "'S-same', head 'shared', values instead of distributions"),
        (load("finetune:tiny", population=2), "population of 2 seeds"),
        (configs.base("rlhf_jax.sft"), "is a run of rlhf_jax.sft, not of sgi.pretrain or sgi.finetune"),
        (load("pretrain:tiny"), "train there first"),
    ],
)
def test_what_cannot_be_exported(tmp_path, config, message):
    (tmp_path / "config.json").write_text(config.to_json_best_effort())
    with pytest.raises(UserError, match=message):
        convert.main(["export", str(tmp_path), str(tmp_path / "out.npz")])
    assert not (tmp_path / "out.npz").exists()


@pytest.mark.parametrize("head", ["goal", "reward"])
def test_redundant_names(head):
    net = NETS["S-bn"].clone(goal=head == "goal")
    plain = state_dict.to_reference(net, *with_target(net, head))
    whole = state_dict.with_redundant(plain)
    name = {"goal": "goal", "reward": "rl"}[head]
    for i, stream in enumerate(("advantage", "value")):
        for part in ("weight_mu", "weight_sigma", "bias_mu", "bias_sigma"):
            alias = whole[f"projection.encoders.{i}.{part}"]
            np.testing.assert_array_equal(alias, plain[f"head.{name}_{stream}.0.{part}"])
    assert whole["conv.conv.1.num_batches_tracked"].dtype == np.int64 and whole["conv.conv.1.num_batches_tracked"].shape == ()
    assert whole["target_projection.encoders.1.old_weight_epsilon"].shape == (6, 16 * 49)
    assert not any(v.any() for k, v in whole.items() if k.endswith("epsilon"))
    assert_equal(state_dict.from_reference(whole)[1:], state_dict.from_reference(plain)[1:])


def test_wrapped_modules_and_golden_names(tmp_path):
    plain = state_dict.to_reference(NETS["S"], *with_target(NETS["S"]))
    for i, prefix in enumerate(("", "module.", "_orig_mod.", "_orig_mod.module.", "weights/")):
        extra = {"in/goal": np.zeros(3)} if prefix == "weights/" else {}
        np.savez(tmp_path / f"{i}.npz", **{prefix + k: v for k, v in plain.items()}, **extra)
        assert_equal(weights.read(tmp_path / f"{i}.npz"), plain)
    np.savez(tmp_path / "twice.npz", **plain, **{"module.predictor.0.bias": np.zeros(3)})
    with pytest.raises(UserError, match=r"predictor\.0\.bias is there twice"):
        weights.read(tmp_path / "twice.npz")
    np.savez(tmp_path / "words.npz", **plain, note=np.array("a"))
    with pytest.raises(UserError, match="note holds <U1 instead of numbers"):
        weights.read(tmp_path / "words.npz")
    np.savez(tmp_path / "object.npz", **plain, note=np.array({}))
    with pytest.raises(UserError, match="not a readable npz"):
        weights.read(tmp_path / "object.npz")


def test_without_pytorch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "a.pt").touch()
    np.savez(tmp_path / "a.npz", **state_dict.to_reference(NETS["S"], *with_target(NETS["S"])))
    for argv in (["to-npz", "a.pt", "b.npz"], ["to-pt", "a.npz", "b.pt"]):
        with pytest.raises(UserError, match=r"pip install torch, or use \.npz files"):
            convert.main([argv[0], *(str(tmp_path / name) for name in argv[1:])])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npz", "a.pt"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("to-npz a.npz b.npz", r"a\.npz: the name must end in \.pt or \.pth"),
        ("to-npz a.pt b.pt", r"b\.pt: the name must end in \.npz"),
        ("to-pt a.pt b.pt", r"a\.pt: the name must end in \.npz"),
        ("to-pt missing.npz b.pt", r"missing\.npz: no such file"),
        ("to-pt a.npz b.pt", "hold no head.rl_advantage_bias"),
        ("export nothing out.npz", "no run in"),
        ("export nothing out.zip", r"must end in \.npz or \.pt or \.pth"),
    ],
)
def test_mistakes_on_the_command_line(tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    np.savez("a.npz", x=np.zeros(3))
    with pytest.raises(UserError, match=message):
        convert.main(argv.split())
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(KeyError), weights.atomic_file(tmp_path / "out.npz") as file:
        file.write(b"half")
        raise KeyError
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        weights.write(tmp_path / "file" / "out.npz", {})


def golden_file():
    if "QUINTET_DATA" not in os.environ:
        pytest.skip("QUINTET_DATA is not set, so the golden file golden/sgi/sgi_m.npz is not available")
    path = Path(os.environ["QUINTET_DATA"]).parent / "golden" / "sgi" / "sgi_m.npz"
    if not path.is_file():
        pytest.skip(f"the golden file {path} is absent")
    return path


def test_exports_have_the_names_and_shapes_of_the_authors_model():
    """The reference's `load_state_dict` takes them as they are."""
    theirs = weights.read(golden_file())
    net, variables, target = state_dict.from_reference(theirs)
    ours = state_dict.with_redundant(state_dict.to_reference(net, variables, target))
    assert {k: (v.shape, v.dtype) for k, v in ours.items()} == {k: (v.shape, v.dtype) for k, v in theirs.items()}
    noise = ("epsilon", "num_batches_tracked")
    assert all(np.array_equal(ours[k], v) for k, v in theirs.items() if not k.endswith(noise))


def test_golden():
    """The authors' own modules: every stored output and gradient within 1e-4."""
    path = golden_file()
    errors = golden.check(path)
    assert {name for name, error in errors.items() if error.relative > 1e-4} == set()
    assert len(errors) == 17
