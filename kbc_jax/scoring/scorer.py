"""A trained run as a scorer of any triples: `load(workdir).score(triples)`."""

import functools
import logging
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from kbc_jax import complete
from kbc_jax.facts import embeddings
from kbc_jax.facts.data import Lexicon, Triples
from kbc_jax.facts.source import open_knowledge
from kbc_jax.scoring import nets
from models import minilm
from training.errors import UserError
from training.runs import Run

log = logging.getLogger(__name__)

CHUNK = 2048  # triples scored at once, padded: one program for any number


class Trained(NamedTuple):
    """The best epoch of every seed of a run, for one of the splits that it was selected on.

    params, stats: pytrees with a leading axis of seeds; threshold, epoch, dev1, dev2: [seeds].
    """

    config: ConfigDict
    lexicon: Lexicon
    net: nets.Scorer
    params: Any
    stats: Any
    threshold: np.ndarray
    epoch: np.ndarray
    dev1: np.ndarray
    dev2: np.ndarray

    def score(self, triples: Triples) -> np.ndarray:
        """Logits float32 [seeds, n] of any triples; words that the run does not know count as the unknown word."""
        phrases = list(dict.fromkeys((*triples.head, *triples.tail)))
        place = {phrase: i for i, phrase in enumerate(phrases)}
        pair = np.array([[place[p] for p in column] for column in (triples.head, triples.tail)])
        words, sentences = self.lexicon.encode(phrases), self.sentences(phrases)
        relation = self.lexicon.relation_ids(triples.relation)
        program, chunks = _program(self.net), []
        for start in range(0, triples.size, CHUNK):
            rows = np.arange(start, start + CHUNK) % triples.size
            chunks.append(program(self.params, self.stats, words[pair[:, rows]], sentences[pair[:, rows]], relation[rows]))
        return np.concatenate(chunks, 1)[:, : triples.size]

    def sentences(self, phrases: Sequence[str]) -> np.ndarray:
        """Sentence vectors float32 [n, S] of phrases; S is 0 where the run does not use them."""
        if not self.config.words.sentences:
            return np.zeros((len(phrases), 0), np.float32)
        known = _known_sentences(self.lexicon)
        missing = [phrase for phrase in phrases if phrase not in known]
        encoded = dict(zip(missing, minilm.encode(missing, minilm.load()), strict=True)) if missing else {}
        return np.stack([known[p] if p in known else encoded[p] for p in phrases])


def load(workdir: str | Path, split: str = "") -> Trained:
    """The run in `workdir`, at the epochs selected on `split` (default: its first).

    Words are numbered by the lexicon that the run saved. A run of an earlier version saved none: its lexicon is built anew
    from its data, which must be there. Raises UserError if the run was not selected on `split`, or its data have changed.
    """
    run = Run(workdir).needs(complete.__name__)
    config = run.config
    split = split or config.data.splits[0]
    selected = run.arrays(only=("extra/best",))["extra"]["best"]
    if split not in selected:
        raise UserError(f"{workdir} was selected on {', '.join(selected)}, not on {split!r}")
    best = selected[split]
    if config.population == 1:
        best = jax.tree.map(lambda x: np.asarray(x)[None], best)
    table = best["params"]["words"]
    lexicon = _lexicon(run)
    if table.shape[1] != len(lexicon.words):
        raise UserError(f"{workdir} knows {table.shape[1]} words, its data now have {len(lexicon.words)}: restore the data")
    if run.has_file(complete.ENCODER) and run.file(complete.ENCODER).decode() != minilm.fingerprint():
        raise UserError(f"{workdir} was trained with another MiniLM than the one that is installed: install that one")
    net = complete.build_net(config, table.shape[2] + (embeddings.SENTENCE_SIZE if config.words.sentences else 0))
    selection = (np.asarray(best[name]) for name in ("threshold", "epoch", "dev1", "dev2"))
    return Trained(config, lexicon, net, best["params"], best.get("stats") or {}, *selection)


def _lexicon(run: Run) -> Lexicon:
    if run.has_file(complete.LEXICON):
        return _parse_lexicon(run.file(complete.LEXICON))
    log.warning("%s has saved no lexicon (an earlier version): it is built anew from today's data", run.path)
    return open_knowledge(run.config.data).lexicon


@functools.lru_cache(maxsize=2)  # the runs of a study share one
def _parse_lexicon(content: bytes) -> Lexicon:
    return Lexicon.from_json(content.decode())


@functools.cache
def _program(net: nets.Scorer) -> Any:
    return jax.jit(jax.vmap(functools.partial(complete.score, net=net), (0, 0, None, None, None)))


@functools.lru_cache(maxsize=2)
def _known_sentences(lexicon: Lexicon) -> Any:
    return types.MappingProxyType(dict(zip(lexicon.phrases, embeddings.phrase_vectors(lexicon), strict=True)))
