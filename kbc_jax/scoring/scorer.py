"""A trained run as a scorer of any triples: `load(workdir).score(triples)`."""

import functools
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
from training.checkpoint import read_arrays
from training.config import load_saved
from training.errors import UserError

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
        """Logits float32 [seeds, n] of any triples; words that the run does not know are the unknown word."""
        phrases = list(dict.fromkeys((*triples.head, *triples.tail)))
        place = {phrase: i for i, phrase in enumerate(phrases)}
        pair = np.array([[place[p] for p in column] for column in (triples.head, triples.tail)])
        words, sentences = self.lexicon.encode(phrases), self.sentences(phrases)
        relation = self.lexicon.relation_ids(triples.relation)
        run, found = _program(self.net), []
        for start in range(0, triples.size, CHUNK):
            rows = np.arange(start, start + CHUNK) % triples.size
            found.append(run(self.params, self.stats, words[pair[:, rows]], sentences[pair[:, rows]], relation[rows]))
        return np.concatenate(found, 1)[:, : triples.size]

    def sentences(self, phrases: Sequence[str]) -> np.ndarray:
        """Sentence vectors float32 [n, S] of phrases; S is 0 where the run does not use them."""
        if not self.config.words.sentences:
            return np.zeros((len(phrases), 0), np.float32)
        known = _known_sentences(self.lexicon)
        missing = [phrase for phrase in phrases if phrase not in known]
        fresh = dict(zip(missing, minilm.encode(missing, minilm.load()), strict=True)) if missing else {}
        return np.stack([known[p] if p in known else fresh[p] for p in phrases])


def load(workdir: str | Path, split: str = "") -> Trained:
    """The run in `workdir`, at the epochs selected on `split` (default: its first). Needs the data that it was trained on."""
    config = load_saved(workdir)
    if config.method != complete.__name__:
        raise UserError(f"{workdir} is a run of {config.method}, not of {complete.__name__}")
    split = split or config.data.splits[0]
    knowledge = open_knowledge(config.data)
    selected = read_arrays(str(workdir), only=("extra/best",))["extra"]["best"]
    if split not in selected:
        raise UserError(f"{workdir} was selected on {', '.join(selected)}, not on {split!r}")
    best = selected[split]
    if config.population == 1:
        best = jax.tree.map(lambda x: np.asarray(x)[None], best)
    if (table := best["params"]["words"]).shape[1] != len(knowledge.lexicon.words):
        raise UserError(
            f"{workdir} knows {table.shape[1]} words, its data now have {len(knowledge.lexicon.words)}: restore the data"
        )
    sentence = len(next(iter(_known_sentences(knowledge.lexicon).values()))) if config.words.sentences else 0
    net = complete.build_net(config, table.shape[2] + sentence)
    facts = (np.asarray(best[name]) for name in ("threshold", "epoch", "dev1", "dev2"))
    return Trained(config, knowledge.lexicon, net, best["params"], best.get("stats") or {}, *facts)


@functools.cache
def _program(net: nets.Scorer) -> Any:
    return jax.jit(jax.vmap(functools.partial(complete.score, net=net), (0, 0, None, None, None)))


@functools.lru_cache(maxsize=2)
def _known_sentences(lexicon: Lexicon) -> Any:
    return types.MappingProxyType(dict(zip(lexicon.phrases, embeddings.phrase_vectors(lexicon), strict=True)))
