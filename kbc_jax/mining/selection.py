"""Selection from scored candidates: ranking, draws from the top, the walk through novelty buckets.

After the authors' code of Jastrzębski et al. 2018 (human_evaluate_triplets_v2.py, order_and_take_top_dist.py). A novelty
function is any callable Triples [n] -> float [n].
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from kbc_jax.facts.data import Triples
from training.errors import UserError

OMCS_CUTS = (3.22, 4.31)  # thirds of Li et al.'s Wikipedia candidates under OMCS vectors (create_buckets_wiki_models.sh)


def rank(triples: Triples, scores: np.ndarray) -> tuple[Triples, np.ndarray]:
    """(triples, scores [n]) by falling score; ties stay in order. Raises UserError for a score that is not a number."""
    scores = np.asarray(scores)
    if scores.shape != (triples.size,) or np.isnan(scores).any():
        raise UserError(f"ranking needs a number for each of the {triples.size} triples")
    order = np.argsort(-scores, kind="stable")
    return triples.take(order), scores[order]


def get_top(ranked: Triples, count: int, best: int, seed: int = 777) -> Triples:
    """`count` triples drawn without replacement from the first `best`, as the authors draw (their order runs from low to high).

    Raises UserError if there are too few.
    """
    if not 0 < count <= best <= ranked.size:
        raise UserError(f"{count} of the best {best} of {ranked.size} triples cannot be drawn: ask for no more than there are")
    return ranked.take(best - 1 - np.random.RandomState(seed).choice(best, count, replace=False))


def third_cuts(
    triples: Triples, novelty: Callable[[Triples], np.ndarray], most: int = 5000, seed: int = 0
) -> tuple[float, float]:
    """The two novelties that cut candidates into thirds, estimated on at most `most` random ones, the same in any ranking."""
    order = sorted(range(triples.size), key=triples.keys().__getitem__)
    sample = triples.take(np.array(order)[np.random.default_rng(seed).permutation(triples.size)[:most]])
    low, high = np.quantile(novelty(sample), [1 / 3, 2 / 3])
    return float(low), float(high)


class Bucket(NamedTuple):
    """The best triples of one range of novelty, in the order of the ranking."""

    rows: np.ndarray  # int64 [k]: places in the ranking
    novelty: np.ndarray  # float [k]


def bucket_walk(
    ranked: Triples,
    novelty: Callable[[Triples], np.ndarray],
    cuts: Sequence[float],
    per_bucket: int = 100,
    block: int = 100,
) -> list[Bucket]:
    """The first `per_bucket` triples of the ranking in each novelty bucket: len(cuts) + 1 buckets, from near to far.

    Novelty is computed for one block of the ranking at a time, and no further than needed. Buckets hold low <= novelty < high.
    Where the ranking ends early, a bucket holds fewer. Raises UserError for cuts that do not increase.
    """
    if not len(cuts) or not (np.diff(cuts) > 0).all():
        raise UserError(f"novelty cuts must increase, not {', '.join(f'{cut:.4g}' for cut in cuts)}: give others")
    buckets: list[list[tuple[int, float]]] = [[] for _ in range(len(cuts) + 1)]
    for begin in range(0, ranked.size, block):
        if min(map(len, buckets)) >= per_bucket:
            break
        rows = range(begin, min(begin + block, ranked.size))
        values = np.asarray(novelty(ranked.take(rows)))
        for row, value, bucket in zip(rows, values, np.digitize(values, cuts), strict=True):
            if len(buckets[bucket]) < per_bucket:
                buckets[bucket].append((row, value))
    return [Bucket(np.array([r for r, _ in pairs], np.int64), np.array([v for _, v in pairs], float)) for pairs in buckets]


def mean_novelty_of_top(ranked: Triples, novelty: Callable[[Triples], np.ndarray], counts: Sequence[int]) -> dict[int, float]:
    """Mean novelty of the K best triples, {K: mean}, for those K of `counts` that the ranking reaches."""
    reached = [count for count in counts if 0 < count <= ranked.size]
    values = novelty(ranked.take(range(max(reached)))) if reached else ()
    return {count: float(np.mean(values[:count])) for count in reached}
