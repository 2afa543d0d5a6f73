"""A config's task, and the tokeniser that belongs to its weights: its run's own, its source's, or one made from the data."""

import functools
import logging
from pathlib import Path

from ml_collections import ConfigDict

from models import tokenisers
from models.tokenisers import Tokeniser
from rlhf_jax.tasks import Task, open_task, tldr
from training import runs
from training.errors import UserError
from training.runs import Run

SPLIT = "train"  # whose texts train a tokeniser
STAGES = ("rlhf_jax.sft", "rlhf_jax.reward_model", "rlhf_jax.dpo", "rlhf_jax.rl")  # whose runs save one

log = logging.getLogger(__name__)


def open_data(config: ConfigDict) -> tuple[Task, Tokeniser]:
    """The task and the tokeniser of a config. TL;DR posts are shortened so that title and 'TL;DR:' stay (`tldr.fit`)."""
    task, tokeniser = open_task(config.data), open_tokeniser(config)
    if task.name != "tldr":
        return task, tokeniser
    short = lambda part: part._replace(prompts=[tldr.fit(p, config.sample.prompt, tokeniser.encode) for p in part.prompts])  # noqa: E731
    splits, pairs = ({name: short(part) for name, part in parts.items()} for parts in (task.splits, task.pairs))
    return task._replace(splits=splits, pairs=pairs), tokeniser


def open_tokeniser(config: ConfigDict) -> Tokeniser:
    """The tokeniser of a config: what its run has saved, else its source's (`sources.init`), else what `tokeniser` describes.

    Runs of earlier versions have saved none, and had what `tokeniser` describes.

    Raises:
      UserError: the section `tokeniser` describes another one than the source has.
    """
    workdir, source = config.get("workdir", ""), config.sources.init
    if workdir and runs.is_run(workdir):
        if saved := _saved(Run(workdir)):
            return saved
        log.warning("%s has no %s (an earlier version trained it): it is made from the data again", workdir, tokenisers.FILE)
        return _described(config)
    if source and runs.is_run(source):
        return _of_run(config.tokeniser, Run(source).needs(*STAGES))
    if source and (Path(source) / tokenisers.FILE).is_file():
        return _same(config.tokeniser, tokenisers.load(source), source)
    return _described(config)


def _saved(run: Run) -> Tokeniser | None:
    names = (tokenisers.FILE, tokenisers.SETTINGS)
    return tokenisers.from_files({name: run.file(name) for name in names}) if run.has_file(tokenisers.FILE) else None


def _of_run(options: ConfigDict, run: Run) -> Tokeniser:
    """The tokeniser of the run that a later stage starts from, unless `options` asks for another kind."""
    there = run.config.tokeniser
    for key in ("kind", *(["vocab"] if options.kind == "bpe" else [])):
        if options.kind != "file" and options[key] != there[key]:
            raise UserError(
                f"tokeniser.{key} is {options[key]!r}, but {run.path} has {there[key]!r}: a later stage keeps its source's"
            )
    return _same(options, open_tokeniser(run.config), str(run.path))


def _same(options: ConfigDict, tokeniser: Tokeniser, source: str) -> Tokeniser:
    """The source's tokeniser. Raises UserError if the config names a file with another one."""
    if options.kind == "file" and options.path and tokenisers.load(options.path).files() != tokeniser.files():
        raise UserError(f"tokeniser.path {options.path} is not the tokeniser of {source}: leave it out")
    return tokeniser


def _described(config: ConfigDict) -> Tokeniser:
    """The tokeniser that a config's `tokeniser` section describes.

    `kind` is 'file' (`path`: a folder with tokenizer.json), or made from the task's own training texts: 'bpe' (of at most
    `vocab` tokens) or 'characters'.
    """
    options = config.tokeniser
    if options.kind == "file":
        return tokenisers.load(options.path)
    if options.kind not in ("bpe", "characters"):
        raise UserError(f"tokeniser.kind {options.kind!r} is unknown: use 'bpe', 'characters' or 'file'")
    texts = open_task(config.data).texts[SPLIT]
    if options.kind == "characters":
        return tokenisers.characters(sorted(set("".join(texts))))
    return _bpe(tuple(texts), options.vocab)


@functools.lru_cache(maxsize=4)  # sizes, streams and evaluations of a run ask for it
def _bpe(texts: tuple[str, ...], vocab: int) -> Tokeniser:
    return tokenisers.train_bpe(texts, vocab)
