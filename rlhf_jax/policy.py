"""From a config to a language model: its shape, the weights of a source, a policy's parameters, frozen weights on the mesh."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from models import decoder, heads, lora
from models.decoder import TransformerConfig
from models.hub import folder
from models.presets import PRESETS
from rlhf_jax.tasks import arithmetic
from rlhf_jax.tasks.tokenised import STAGES, open_tokeniser
from training import runs
from training.errors import UserError
from training.population import with_seed
from training.rng import key_for
from training.runs import Run
from training.sharding import path_name, state_shardings


def model_config(config: ConfigDict) -> TransformerConfig:
    """The decoder of a config's `model` section: a published preset, or the shape that it spells out."""
    options, vocab = config.model, config.model.get("vocab", 0) or _published_vocab(config)
    if options.preset:
        cfg = dataclasses.replace(_preset(options.preset), vocab=vocab)
    else:
        cfg = TransformerConfig(vocab=vocab, **{name: options[name] for name in ("layers", "width", "heads", "context")})
    return dataclasses.replace(cfg, dtype=options.dtype, remat=options.remat)


def _preset(name: str) -> TransformerConfig:
    if name not in PRESETS:
        raise UserError(f"model.preset {name!r} is unknown: use one of {', '.join(PRESETS)}")
    return PRESETS[name]


def _published_vocab(config: ConfigDict) -> int:
    """The vocabulary of a model that is planned without its tokeniser."""
    kind = config.tokeniser.kind
    if config.model.preset:
        return _preset(config.model.preset).vocab
    if kind == "bpe":
        return config.tokeniser.vocab
    if kind == "characters" and config.data.task == "arithmetic":
        return 2 + len(arithmetic.alphabet(config.data.ops))  # EOS and padding
    raise UserError(f"model.vocab is 0, and the tokeniser ({kind}) of {config.data.task} is not known yet: give its size")


def sizes(config: ConfigDict) -> dict[str, int]:
    """What the data decide (training/method.py): the model's vocabulary, as the tokeniser has it.

    That of a preset may be larger than its tokeniser (padded to a round number), or lack a token for padding (GPT-2), which it
    then gets. Raises UserError for the tokeniser of another model.
    """
    tokeniser = open_tokeniser(config)
    if not config.model.preset:
        return {"model.vocab": tokeniser.size}
    vocab = _preset(config.model.preset).vocab
    if tokeniser.size == vocab + 1 and tokeniser.pad == vocab:
        return {"model.vocab": tokeniser.size}
    spare = folder.SPARE if config.tokeniser.kind == "file" else vocab
    if not 0 <= vocab - tokeniser.size <= spare:
        raise UserError(f"the tokeniser has {tokeniser.size} tokens, {config.model.preset} {vocab}: use its own tokeniser")
    return {"model.vocab": vocab}


def load(source: str, cfg: TransformerConfig, parts: tuple[str, ...], *, head: bool = False) -> dict:
    """Weights of a decoder as numpy arrays, from a run or a Hugging Face folder.

    Args:
      source: a workdir (the first of `parts` that its parameters have is taken; LoRA matrices are merged into its base) or a
        folder with config.json and safetensors.
      head: keep the scalar head 'score', and do without the one over the vocabulary.

    Raises:
      UserError: nothing there, or a shape other than `cfg` asks for.
    """
    weights = _of_run(Run(source), cfg, parts) if runs.is_run(source) else _of_folder(source, cfg)
    wanted = jax.eval_shape(lambda: decoder.init(jax.random.key(0), cfg))
    if head:
        wanted.pop("head", None)
    _check(wanted, weights, source)
    return weights if head else heads.without_head(weights)


def load_source(config: ConfigDict, name: str, cfg: TransformerConfig, parts: tuple[str, ...], *, head: bool = False) -> dict:
    """`load` of `config.sources[name]`; what is taken from a run is logged."""
    source = config.sources[name]
    if runs.is_run(source):
        run = Run(source).needs(*STAGES)
        run.announce(run.config.data.task, config.data.task)
    return load(source, cfg, parts, head=head)


def _of_run(run: Run, cfg: TransformerConfig, parts: tuple[str, ...]) -> dict:
    arrays, config = run.arrays(only=("params",))["params"], with_seed(run.config, run.config.seed)
    name = next((part for part in parts if part in arrays), None)
    if name is None:
        raise UserError(f"{run.path} is a run without {' or '.join(parts)}; it has {', '.join(arrays)}")
    if name != "policy" or not config.lora.rank:
        return arrays[name]
    policy = Policy(config, cfg)
    return as_numpy(lora.merge(policy.weights(arrays[name], policy.base())))


def _of_folder(path: str, cfg: TransformerConfig) -> dict:
    """Weights of a Hugging Face folder, which must be the very model: constants such as eps show in no array's shape."""
    published, weights = folder.load(path)
    if not isinstance(published, TransformerConfig):
        raise UserError(f"{path} is not a decoder")
    if cfg.vocab == published.vocab + 1:
        published, weights = folder.add_padding(published, weights)
    there, here = _constants(published), _constants(cfg)
    if other := [name for name in here if here[name] != there[name]]:
        name = other[0]
        raise UserError(f"{path}: {name} is {there[name]} there and {here[name]} here; config.model must describe it")
    return weights


def _constants(cfg: TransformerConfig) -> dict:
    ours = {"kv_heads": cfg.kv, "head_dim": cfg.size, "ffn": cfg.inner, "dtype": "", "remat": False}
    return {**dataclasses.asdict(cfg), **ours}


def _check(wanted: Any, weights: dict, source: str) -> None:
    """Raise UserError unless `weights` has every array of `wanted`, in its shape (it may have more, such as a head)."""
    shapes = {path_name(path): x.shape for path, x in jax.tree_util.tree_leaves_with_path(weights)}
    for path, x in jax.tree_util.tree_leaves_with_path(wanted):
        name = path_name(path)
        if shapes.get(name) != x.shape:
            had = shapes.get(name, "nothing")
            raise UserError(
                f"{source}: {name} is {had} there and {x.shape} here; config.model and tokeniser must be those of it"
            )


class Policy:
    """How a config's policy is parametrised: all weights, or LoRA matrices on a frozen base.

    `start()` gives the trainable parameters at the first step; `weights(trainable, frozen)` is what `models.decoder` takes,
    where `frozen` is `base()` under LoRA and () else. All are functions of the config alone: they are made again after a
    restart and need not be saved.
    """

    def __init__(self, config: ConfigDict, cfg: TransformerConfig):
        self.cfg, self.rank, self.alpha = cfg, config.lora.rank, config.lora.alpha
        self._config, self._targets = config, tuple(config.lora.targets)
        self.random = not config.sources.init

    def fresh(self, key: jax.Array) -> Any:
        """Trainable parameters from random weights."""
        base = decoder.init(key, self.cfg)
        return lora.init(key, base, self.rank, self._targets) if self.rank else base

    def base(self) -> dict:
        """Weights before any training of this run."""
        if self.random:
            return decoder.init(key_for(0, 0, "base"), self.cfg)
        return load_source(self._config, "init", self.cfg, ("policy",))

    def start(self) -> Any:
        """Trainable parameters at the first step: the same for all seeds of a population."""
        if not self.rank:
            return self.base()
        shapes = jax.eval_shape(lambda: decoder.init(jax.random.key(0), self.cfg))
        return lora.init(key_for(0, 0, "lora"), shapes, self.rank, self._targets)

    def weights(self, trainable: Any, frozen: Any) -> Any:
        """The decoder's parameters."""
        return lora.combine(frozen, trainable, self.alpha, self.rank) if self.rank else trainable


def frozen_spec(policy: Policy, mesh: Mesh, min_size: int, *, start: bool = True) -> dict:
    """Shapes and shardings of {'frozen': base of a LoRA policy or (), 'init': the first trainable weights if `start`}."""
    key = jax.random.key(0)
    spec = {"frozen": _sharded(lambda: decoder.init(key, policy.cfg), mesh, decoder.RULES, min_size) if policy.rank else ()}
    if start:
        spec["init"] = _sharded(lambda: policy.fresh(key), mesh, () if policy.rank else decoder.RULES, min_size)
    return spec


def _sharded(make: Callable[[], Any], mesh: Mesh, rules: tuple, min_size: int) -> Any:
    shapes = jax.eval_shape(make)
    shardings = state_shardings(shapes, mesh, rules, min_size)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def frozen(policy: Policy, spec: dict) -> dict:
    """The arrays of `frozen_spec`, sharded like trained ones: random ones are made in place, loaded ones are copied there."""
    make = {"frozen": policy.base, "init": policy.start}
    return {name: _place(make[name], part, policy.random) if part else () for name, part in spec.items()}


def _place(make: Callable[[], Any], spec: Any, random: bool) -> Any:
    shardings = jax.tree.map(lambda x: x.sharding, spec)
    if random:
        return jax.jit(make, out_shardings=shardings)()
    return jax.tree.map(
        lambda x, s: jax.make_array_from_callback(x.shape, s, lambda index: x[index]), as_numpy(make()), shardings
    )


def as_numpy(tree: Any) -> Any:
    """The tree with its arrays on the host."""
    return jax.tree.map(np.asarray, tree)
