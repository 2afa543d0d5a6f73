"""From a config to a tokeniser, a language model and its weights; scalar heads; work over many rows in chunks."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from models import decoder, lora, tokenisers
from models.decoder import TransformerConfig
from models.hub import folder as hub
from models.presets import PRESETS
from models.tokenisers import Tokeniser
from rlhf_jax.tasks import Task, open_task, tldr
from training.checkpoint import read_arrays
from training.config import load_saved
from training.errors import UserError
from training.rng import key_for
from training.sharding import batch_ways, my_rows, path_name, place_replicated, place_rows, state_shardings

SPLIT = "train"  # whose texts train a tokeniser


def open_tokeniser(options: ConfigDict, task: Task) -> Tokeniser:
    """The tokeniser of a config's `tokeniser` section: a file from disk, or one made from the task's own training texts.

    Args:
      options: `kind` 'bpe' (trained here: deterministic, so that a later stage gets the same one), 'characters' or 'file'
        (`path`: a folder with tokenizer.json); `vocab` of 'bpe'.
    """
    if options.kind == "file":
        return tokenisers.load(options.path)
    texts = task.texts[SPLIT]
    if options.kind == "bpe":
        return tokenisers.train_bpe(texts, options.vocab)
    if options.kind == "characters":
        return tokenisers.characters(sorted(set("".join(texts))))
    raise UserError(f"tokeniser.kind {options.kind!r} is unknown: use 'bpe', 'characters' or 'file'")


def open_data(config: ConfigDict) -> tuple[Task, Tokeniser]:
    """The task and the tokeniser of a config. TL;DR posts are shortened so that title and 'TL;DR:' stay (`tldr.fit`)."""
    task = open_task(config.data)
    tokeniser = open_tokeniser(config.tokeniser, task)
    if task.name != "tldr":
        return task, tokeniser
    short = lambda part: part._replace(prompts=[tldr.fit(p, config.sample.prompt, tokeniser.encode) for p in part.prompts])  # noqa: E731
    splits, pairs = ({name: short(part) for name, part in parts.items()} for parts in (task.splits, task.pairs))
    return task._replace(splits=splits, pairs=pairs), tokeniser


def model_config(options: ConfigDict, tokeniser: Tokeniser) -> TransformerConfig:
    """The decoder of a config's `model` section: a published preset, or the shape that it spells out."""
    if options.preset:
        if options.preset not in PRESETS:
            raise UserError(f"model.preset {options.preset!r} is unknown: use one of {', '.join(PRESETS)}")
        cfg = PRESETS[options.preset]
        if tokeniser.size == cfg.vocab + 1 and tokeniser.pad == cfg.vocab:  # a padding token of our own (GPT-2 has none)
            cfg = dataclasses.replace(cfg, vocab=tokeniser.size)
        if not 0 <= cfg.vocab - tokeniser.size <= (cfg.vocab if tokeniser.own else hub.SPARE):
            raise UserError(f"the tokeniser has {tokeniser.size} tokens, {options.preset} {cfg.vocab}: use its own tokeniser")
    else:
        shape = {name: options[name] for name in ("layers", "width", "heads", "context")}
        cfg = TransformerConfig(vocab=tokeniser.size, **shape)
    return dataclasses.replace(cfg, dtype=options.dtype, remat=options.remat)


def load(source: str, cfg: TransformerConfig, parts: tuple[str, ...], *, head: bool = False) -> dict:
    """Weights of a decoder as numpy arrays, from a workdir or a Hugging Face folder.

    Args:
      source: a run (the first of `parts` that its parameters have is taken; LoRA matrices are merged into its base) or a
        folder with config.json and safetensors.
      head: keep the scalar head 'score', and do without the one over the vocabulary.

    Raises:
      UserError: nothing there, or a shape other than `cfg` asks for.
    """
    weights = _of_run(source, cfg, parts) if (Path(source) / "checkpoints").exists() else _of_folder(source, cfg)
    wanted = jax.eval_shape(lambda: decoder.init(jax.random.key(0), cfg))
    if head:
        wanted.pop("head", None)
    _check(wanted, weights, source)
    return weights if head else strip(weights)


def _of_run(workdir: str, cfg: TransformerConfig, parts: tuple[str, ...]) -> dict:
    arrays, config = read_arrays(workdir, only=("params",))["params"], load_saved(workdir)
    name = next((part for part in parts if part in arrays), None)
    if name is None:
        raise UserError(f"init_from {workdir}: a run without {' or '.join(parts)}; it has {', '.join(arrays)}")
    if name != "policy" or not config.lora.rank:
        return arrays[name]
    policy = Policy(config, cfg)
    return as_numpy(lora.merge(policy.weights(arrays[name], policy.base())))


def _of_folder(folder: str, cfg: TransformerConfig) -> dict:
    """Weights of a Hugging Face folder, which must be the very model: constants such as eps show in no array's shape."""
    found, weights = hub.load(folder)
    if not isinstance(found, TransformerConfig):
        raise UserError(f"init_from {folder} is not a decoder")
    if cfg.vocab == found.vocab + 1:
        found, weights = hub.add_padding(found, weights)
    there, here = _constants(found), _constants(cfg)
    if other := [name for name in here if here[name] != there[name]]:
        name = other[0]
        raise UserError(f"{folder}: {name} is {there[name]} there and {here[name]} here; config.model must describe it")
    return weights


def _constants(cfg: TransformerConfig) -> dict:
    ours = {"kv_heads": cfg.kv, "head_dim": cfg.size, "ffn": cfg.inner, "dtype": "", "remat": False}
    return {**dataclasses.asdict(cfg), **ours}


def _check(wanted: Any, found: dict, source: str) -> None:
    """Raise UserError unless `found` has every array of `wanted`, in its shape (it may have more, such as a head)."""
    shapes = {path_name(path): x.shape for path, x in jax.tree_util.tree_leaves_with_path(found)}
    for path, x in jax.tree_util.tree_leaves_with_path(wanted):
        name = path_name(path)
        if shapes.get(name) != x.shape:
            had = shapes.get(name, "nothing")
            raise UserError(
                f"{source}: {name} is {had} there and {x.shape} here; config.model and tokeniser must be those of it"
            )


class Policy:
    """How a config's policy is parametrised: all weights, or LoRA matrices on a frozen base.

    `start()` are the trainable parameters at the first step, `frozen()` what stays; `weights(trainable, frozen)` is what
    `transformer` takes. Both are functions of the config alone: they are made again after a restart and need not be saved.
    """

    def __init__(self, config: ConfigDict, cfg: TransformerConfig, parts: tuple[str, ...] = ("policy",)):
        self.cfg, self.rank, self.alpha = cfg, config.lora.rank, config.lora.alpha
        self._targets, self._source, self._parts = tuple(config.lora.targets), config.init_from, parts
        self.random = not config.init_from

    def fresh(self, key: jax.Array) -> Any:
        """Trainable parameters from random weights; the shapes of all that this class returns."""
        base = decoder.init(key, self.cfg)
        return lora.init(key, base, self.rank, self._targets) if self.rank else base

    def base(self) -> dict:
        """Weights before any training of this run."""
        return load(self._source, self.cfg, self._parts) if self._source else decoder.init(key_for(0, 0, "base"), self.cfg)

    def start(self) -> Any:
        """Trainable parameters at the first step: the same for all seeds of a population."""
        if not self.rank:
            return self.base()
        shapes = jax.eval_shape(lambda: decoder.init(jax.random.key(0), self.cfg))
        return lora.init(key_for(0, 0, "lora"), shapes, self.rank, self._targets)

    def frozen(self) -> Any:
        return self.base() if self.rank else ()

    def weights(self, trainable: Any, frozen: Any) -> Any:
        return lora.combine(frozen, trainable, self.alpha, self.rank) if self.rank else trainable


def strip(weights: dict) -> dict:
    """A decoder without its scalar head."""
    return {name: x for name, x in weights.items() if name != "score"}


def with_head(key: jax.Array, weights: dict, cfg: TransformerConfig) -> dict:
    """A decoder's trunk with a scalar head 'score' (no bias), fresh unless there is one: normal, sd 1 / sqrt(D + 1)."""
    trunk = {name: x for name, x in weights.items() if name != "head"}
    kernel = jax.random.normal(key, (cfg.width, 1)) * (cfg.width + 1) ** -0.5
    return {"score": {"kernel": kernel}, **trunk}


def values(params: dict, cfg: TransformerConfig, ids: jax.Array, mask: jax.Array) -> jax.Array:
    """Scalar head at every position: ids int32 [B, T], mask bool [B, T] -> float32 [B, T]."""
    return head(params["score"], decoder.hidden(params, cfg, ids, mask))


def head(params: dict, hidden: jax.Array) -> jax.Array:
    """[..., D] -> float32 [...]."""
    return (hidden.astype(jnp.float32) @ params["kernel"].astype(jnp.float32))[..., 0]


def last_score(params: dict, cfg: TransformerConfig, ids: jax.Array, mask: jax.Array) -> jax.Array:
    """A reward model's score: the scalar head at the last real token -> float32 [B]."""
    last = mask.shape[1] - 1 - jnp.argmax(mask[:, ::-1], 1)
    hidden = decoder.hidden(params, cfg, ids, mask)
    return head(params["score"], jnp.take_along_axis(hidden, last[:, None, None], 1)[:, 0])


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


def frozen(policy: Policy, mesh: Mesh, min_size: int, *, start: bool = True) -> Callable[[], dict]:
    """() -> {'frozen': base of a LoRA policy or (), 'init': the first trainable weights}, placed once and remembered.

    Under `jax.eval_shape` it gives shapes, for random weights, and remembers nothing.
    """
    kept: list[dict] = []

    def consts() -> dict:
        if kept:
            return kept[0]
        rules, loaded = decoder.RULES, not policy.random
        found = {"frozen": place(policy.frozen, mesh, rules if policy.rank else (), min_size, loaded=loaded)}
        if start:
            found["init"] = place(policy.start, mesh, () if policy.rank else rules, min_size, loaded=loaded)
        if not any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(found)):
            kept.append(found)
        return found

    return consts


def place(make: Callable[[], Any], mesh: Mesh, rules: tuple, min_size: int, *, loaded: bool) -> Any:
    """Frozen weights on the mesh, sharded like trained ones: random ones are made in place, `loaded` ones are copied there."""
    tree = make() if loaded else jax.eval_shape(make)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
    shardings = state_shardings(shapes, mesh, rules, min_size)
    if not loaded:
        return jax.jit(make, out_shardings=shardings)()
    return jax.tree.map(
        lambda x, s: jax.make_array_from_callback(x.shape, s, lambda index: x[index]), as_numpy(tree), shardings
    )


def spread_rows(host: Any, mesh: Mesh) -> Any:
    """Rows that every process holds -> a global batch, rows over the mesh if they divide, else replicated."""
    n = len(jax.tree.leaves(host)[0])
    if n % batch_ways(mesh):
        return place_replicated(host, mesh)
    mine = my_rows(n, mesh)
    return place_rows(jax.tree.map(lambda x: x[mine], host), mesh, n)


def as_numpy(tree: Any) -> Any:
    return jax.tree.map(np.asarray, tree)
