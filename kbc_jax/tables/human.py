"""Rankings of mined triples against human ratings: 466 triples with two ratings of 0 to 4, or another file like it.

The 466 are what scorers built on BERT had ranked first (Davison et al. 2019): no sample of all mined triples. All rankings are
compared on the same bootstrap draws of triples, and of each arm's seeds.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from kbc_jax.scoring.bootstrap import DRAWS, estimate, over_seeds, seed_weights, spearman, top_mean, triple_weights
from kbc_jax.tables.compare import contrasts
from training.errors import UserError

COLUMNS = ("rater1", "rater2", "mean", "li_score")
LI = "Li et al.'s score"
TOP, TOP_PART = 100, 30


def compare(
    arms: Mapping[str, np.ndarray],
    columns: Mapping[str, np.ndarray],
    thirds: np.ndarray,
    unseen: np.ndarray,
    draws: int = DRAWS,
) -> dict[str, Any]:
    """Agreement with people of the rankings by the arms, and by the score that Li et al. published.

    Args:
      arms: {name: scores [S, n]}.
      columns: COLUMNS of the file, float [n]. Raises UserError where one is missing.
      thirds: int [n], 0, 1, 2 from the least to the most novel third, else -1.
      unseen: bool [n], triples with a word that training lacks.

    Returns:
      rankings: {arm, 'a - b', or 'arm - Li et al.'s score': {measure: Estimate as a dict}}. Measures: spearman with the mean
        rating, top_100 (mean rating of the best 100), of each third the best 30, of the unseen ones spearman and the best 30.
      raters: rank correlation of the two raters; ceiling: the measures of a ranking by the mean rating itself.
      mean: mean rating; n, unseen: numbers of triples.
    """
    if missing := [name for name in COLUMNS if name not in columns]:
        raise UserError(f"the human ratings lack the column {', '.join(missing)}; give the file as it was published")
    weights = triple_weights(np.arange(len(unseen)), draws)
    arms = {**arms, LI: columns["li_score"][None]}
    values = {name: _measures(name, scores, columns["mean"], weights, thirds, unseen) for name, scores in arms.items()}
    pairs = contrasts(arms) | {f"{name} - {LI}": {name: 1, LI: -1} for name in arms if name != LI}
    raters = spearman(weights, columns["rater1"][None], columns["rater2"])[0]
    ideal = _measures("", columns["mean"][None], columns["mean"], weights, thirds, unseen)
    return {
        "rankings": {
            name: {
                measure: estimate(sum(sign * values[arm][measure] for arm, sign in signs.items()))._asdict()
                for measure in values[LI]
            }
            for name, signs in pairs.items()
        },
        "raters": estimate(raters)._asdict(),
        "ceiling": {measure: float(value[0]) for measure, value in ideal.items()},
        "mean": float(columns["mean"].mean()),
        "n": len(unseen),
        "unseen": int(unseen.sum()),
    }


def _measures(name: str, scores: np.ndarray, ratings, weights: np.ndarray, thirds, unseen) -> dict[str, np.ndarray]:
    """Measures of one arm in every draw, {measure: [D]}."""
    measures = {"spearman": spearman(weights, scores, ratings), f"top_{TOP}": top_mean(weights, scores, ratings, TOP)}
    for k in range(3):
        rows = thirds == k
        measures[f"top_{TOP_PART}_third_{k + 1}"] = top_mean(weights[rows], scores[:, rows], ratings[rows], TOP_PART)
    if unseen.any():
        part = weights[unseen], scores[:, unseen], ratings[unseen]
        measures |= {"unseen_spearman": spearman(*part), f"unseen_top_{TOP_PART}": top_mean(*part, TOP_PART)}
    seeds = seed_weights(name, len(scores), weights.shape[1] - 1)
    return {measure: over_seeds(values, seeds) for measure, values in measures.items()}
