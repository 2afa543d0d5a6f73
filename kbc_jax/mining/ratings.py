"""Blinded rating sheets: export for people, import of what they filled in, agreement, means of the models.

Two studies of Jastrzębski et al. 2018. Quality: the best triples of several models, mixed, the model hidden, rated 0 to 4 (the
scale of Speer et al. 2010, as in Li et al. 2016). Novelty: a triple beside its nearest training triples, and a code for how it
follows from them. A sheet is a tab-separated file for a spreadsheet; its key, a JSON file, stays with the experimenter.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import stats

from kbc_jax.facts.data import Triples
from training import files
from training.errors import UserError

SCALE = {0: "senseless", 1: "not true", 2: "opinion, or I do not know", 3: "sometimes true", 4: "true"}
FALSE, KNOWLEDGE = 0, 6  # codes that leave a row out of the novelty study
CODES = {
    1: "A  same relation, other wording (form of a word, a word more or less)",
    2: "B  other relation, other wording",
    3: "C  same relation, a similar word (book, newspaper)",
    7: "D  other relation, a similar word",
    5: "E  new, but follows from one of the triples beside it",
    4: "F  new: none of these",
    KNOWLEDGE: "   knowledge (left out of the result)",
    FALSE: "   the statement is false (left out of the result)",
}  # the first six from old to new, 0 to 5 on the ordered scale
_KEYS = {"quality": {"triple", "models"}, "novelty": {"triple", "novelty"}}  # kinds of keys: what a row has
ORDER = tuple(code for code in CODES if code not in (FALSE, KNOWLEDGE))

_VERBS = {
    "atlocation": "is found at", "usedfor": "is used for", "isa": "is a kind of", "capableof": "is capable of",
    "hasprerequisite": "first needs", "hasproperty": "has the property", "causes": "causes", "hasa": "has",
    "motivatedbygoal": "is done in order to", "desires": "wants", "causesdesire": "makes one want", "partof": "is part of",
    "receivesaction": "can be (done to it)", "notdesires": "does not want", "madeof": "is made of",
    "notcapableof": "is not capable of", "definedas": "is defined as", "hasfirstsubevent": "begins with",
    "haslastsubevent": "ends with", "nothasproperty": "does not have the property", "notisa": "is not a kind of",
    "relatedto": "is related to", "createdby": "is created by", "nothasa": "does not have", "symbolof": "is a symbol of",
    "notmadeof": "is not made of", "instanceof": "is an instance of", "hassubevent": "includes or brings with it",
    "inheritsfrom": "inherits from", "locatednear": "is located near", "haspainintensity": "has the pain intensity",
    "haspaincharacter": "has the pain character", "desireof": "is wanted by", "locationofaction": "is where this happens",
}  # fmt: skip


class Ratings(NamedTuple):
    """Filled quality sheets of n triples by R raters; NaN where a rater left a row open."""

    raters: tuple[str, ...]
    triples: Triples
    values: np.ndarray  # float64 [R, n], 0 to 4
    models: dict[str, np.ndarray]  # bool [n]: the triple was among the model's best


class NoveltyCodes(NamedTuple):
    """A filled novelty sheet: codes int64 [n], -1 where a row is open, and the computed novelty float64 [n]."""

    triples: Triples
    codes: np.ndarray
    novelty: np.ndarray


def statement(key: tuple[str, str, str]) -> str:
    """The triple as a statement for people: 'dog is capable of: bark'."""
    relation, head, tail = key
    return f"{head} {_VERBS[relation]}: {tail}"


def export_sheet(models: Mapping[str, Triples], path: Path | str, key_path: Path | str, *, seed: int = 777) -> int:
    """Write the blinded sheet, every triple once, shuffled, and its key; returns the number of rows.

    `models`: {model: its triples, the best first}.

    The key holds the models that picked a row, with its place (from 1) in each. Row names depend on the triple alone.
    """
    places_of: dict[tuple[str, str, str], dict[str, int]] = {}
    for name, ranked in models.items():
        for place, triple in enumerate(ranked.keys(), 1):
            places_of.setdefault(triple, {}).setdefault(name, place)
    rows = {_name(triple): {"triple": triple, "models": places} for triple, places in places_of.items()}
    help_lines = ["How true is each statement? Fill in the last column with a whole number:", *_legend(SCALE)]
    _write_sheet(
        path, help_lines, ["id", "statement", "rating"], [[name, statement(r["triple"])] for name, r in rows.items()], seed
    )
    _write_key(key_path, "quality", seed, rows)
    return len(rows)


def export_novelty_sheet(
    triples: Triples,
    nearest: Sequence[Triples],
    novelty: np.ndarray,
    path: Path | str,
    key_path: Path | str,
    *,
    seed: int = 777,
) -> int:
    """Write the sheet of the novelty study, shuffled, and its key; returns the number of rows.

    nearest: for each of the n triples its nearest training triples, the nearest first. novelty: float [n], only in the key.
    """
    rows, lines = {}, []
    for triple, near, value in zip(triples.keys(), nearest, novelty, strict=True):
        if (name := _name(triple)) not in rows:
            rows[name] = {"triple": triple, "novelty": float(value)}
            lines.append([name, statement(triple), " | ".join(map(statement, near.keys()))])
    help_lines = ["How does each statement follow from those beside it? Fill in the last column with a code:", *_legend(CODES)]
    _write_sheet(path, help_lines, ["id", "statement", "nearest", "code"], lines, seed)
    _write_key(key_path, "novelty", seed, rows)
    return len(rows)


def import_sheets(paths: Sequence[Path | str], key_path: Path | str) -> Ratings:
    """Read filled quality sheets, one of each rater (named by its file). Rows may be open or missing.

    Raises UserError, with file and line, for an unknown or repeated id and a rating that is no whole number from 0 to 4.
    """
    rows = _read_key(key_path, "quality")
    raters = tuple(Path(path).stem for path in paths)
    if not raters or len(set(raters)) < len(raters):
        raise UserError("give the sheet of each rater, under file names that differ")
    values = np.array([_read_sheet(path, list(rows), SCALE) for path in paths])
    names = sorted({model for row in rows.values() for model in row["models"]})
    models = {name: np.array([name in row["models"] for row in rows.values()]) for name in names}
    return Ratings(raters, Triples.of([tuple(row["triple"]) for row in rows.values()]), values, models)


def import_novelty_sheet(path: Path | str, key_path: Path | str) -> NoveltyCodes:
    """Read a filled novelty sheet. Raises UserError like `import_sheets`."""
    rows = _read_key(key_path, "novelty")
    codes = np.nan_to_num(_read_sheet(path, list(rows), CODES), nan=-1).astype(int)
    triples = Triples.of([tuple(row["triple"]) for row in rows.values()])
    return NoveltyCodes(triples, codes, np.array([row["novelty"] for row in rows.values()]))


def agreement(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """Agreement of two raters [n], NaN where open: {n, pearson, spearman, kappa, quadratic_kappa}.

    n: number of rows rated by both. Kappa (Cohen's) takes the five ratings as categories; the quadratic one weighs a
    disagreement by its square. NaN where a rater never changes. Raises UserError for less than two common rows.
    """
    common = np.isfinite(a) & np.isfinite(b)
    if common.sum() < 2:
        raise UserError(f"two raters need at least 2 rows that both have filled in; there are {common.sum()}")
    x, y = np.asarray(a)[common], np.asarray(b)[common]
    i, j = np.indices((len(SCALE), len(SCALE)))
    return {
        "n": int(common.sum()),
        "pearson": _correlation(stats.pearsonr, x, y),
        "spearman": _correlation(stats.spearmanr, x, y),
        "kappa": _kappa(x.astype(int), y.astype(int), i != j),
        "quadratic_kappa": _kappa(x.astype(int), y.astype(int), (i - j) ** 2),
    }


def _kappa(x: np.ndarray, y: np.ndarray, cost: np.ndarray) -> float:
    """Kappa, 1 - observed / expected cost of disagreement (Cohen 1968), of ratings int [n] from 0 to k - 1; cost [k, k]."""
    shares = [np.bincount(v, minlength=len(cost)) / len(v) for v in (x, y)]
    expected = (np.outer(*shares) * cost).sum()
    return float(1 - cost[x, y].mean() / expected) if expected else float("nan")


def _correlation(test, x: np.ndarray, y: np.ndarray) -> float:
    """Statistic of a scipy correlation test; NaN where x or y is constant."""
    return float(test(x, y).statistic) if np.ptp(x) and np.ptp(y) else float("nan")


def model_means(ratings: Ratings, *, draws: int = 2000, seed: int = 0) -> dict[str, dict[str, float]]:
    """Mean rating of each model's triples, of each of them the mean of its raters: {model: {n, mean, error, low, high}}.

    error, low, high: bootstrap standard error and 95 % interval over triples; they say nothing about other raters. Raises
    UserError for a model without ratings.
    """
    table = {}
    for name, member in ratings.models.items():
        rated = ratings.values[:, member & np.isfinite(ratings.values).any(0)]
        if not rated.size:
            raise UserError(f"no triple of {name} is rated yet")
        values = np.nanmean(rated, 0)
        means = [values[rows].mean() for rows in _draws(len(values), draws, seed)]
        low, high = np.quantile(means, [0.025, 0.975])
        table[name] = {
            "n": len(values), "mean": float(values.mean()), "error": float(np.std(means, ddof=1)), "low": float(low),
            "high": float(high),
        }  # fmt: skip
    return table


def novelty_summary(codes: np.ndarray, novelty: np.ndarray) -> dict:
    """Table of the novelty study, without open rows, false statements and knowledge.

    Returns `sampled`, `kept`, `shares` of A to F, `mean` on the ordered scale 0 to 5, `mean_near` and `mean_far` half by
    computed novelty, `pearson` with it. Raises UserError for less than two rows.
    """
    keep = np.isin(codes, ORDER)
    if keep.sum() < 2:
        raise UserError(f"the novelty table needs at least 2 rows with a code of {sorted(ORDER)}; there are {keep.sum()}")
    scale = np.array([ORDER.index(code) for code in np.asarray(codes)[keep]])
    ordered = scale[np.argsort(np.asarray(novelty)[keep], kind="stable")]
    half = len(ordered) // 2
    return {
        "sampled": len(codes),
        "kept": len(scale),
        "shares": dict(zip("ABCDEF", (np.bincount(scale, minlength=6) / len(scale)).tolist(), strict=True)),
        "mean": float(scale.mean()),
        "mean_near": float(ordered[:half].mean()),
        "mean_far": float(ordered[half:].mean()),
        "pearson": _correlation(stats.pearsonr, scale, np.asarray(novelty)[keep]),
    }


def _draws(n: int, draws: int, seed: int):
    rng = np.random.default_rng(seed)
    return (rng.integers(n, size=n) for _ in range(draws))


def _name(triple: tuple[str, str, str]) -> str:
    """Name of a row: eight hex digits after a letter, lest a spreadsheet takes it for a number such as 12e4567."""
    return "t" + hashlib.sha256("\t".join(triple).encode()).hexdigest()[:8]


def _legend(meanings: Mapping[int, str]) -> list[str]:
    return [f"{number} = {meaning}" for number, meaning in meanings.items()]


def _write_sheet(path, help_lines: Sequence[str], header: Sequence[str], rows: Sequence[Sequence[str]], seed: int) -> None:
    shuffled = [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))]
    lines = [*(f"# {line}" for line in help_lines), "\t".join(header), *("\t".join([*row, ""]) for row in shuffled)]
    files.write(path, lines)


def _write_key(path, kind: str, seed: int, rows: Mapping[str, dict]) -> None:
    files.write(path, [json.dumps({"kind": kind, "seed": seed, "rows": rows}, indent=1)])


def _read_key(path: Path | str, kind: str) -> dict[str, dict]:
    """Rows of a key. Raises UserError for another file or a key of another kind."""
    key = files.json_object(path, hint := "give the file that was written together with the sheet")
    actual, rows = key.get("kind"), key.get("rows")
    if actual not in _KEYS or not isinstance(rows, dict):
        raise UserError(f"{path} is not the key of a sheet: {hint}")
    if actual != kind:
        raise UserError(f"{path} is the key of a {actual} sheet, not of a {kind} sheet")
    if not all(isinstance(row, dict) and _KEYS[kind] <= row.keys() for row in rows.values()):
        raise UserError(f"{path} has a damaged row: {hint}")
    return rows


def _read_sheet(path: Path | str, names: Sequence[str], allowed: Mapping[int, str]) -> np.ndarray:
    """The filled-in column in the order of `names`, float64 [n], NaN where open. Spreadsheets may quote and add columns."""
    place, values, line_of = {name: i for i, name in enumerate(names)}, np.full(len(names), np.nan), {}
    column = None
    for number, line in files.lines(path):
        fields, where = [field.strip().strip('"') for field in line.split("\t")], f"{path} line {number}"
        if not any(fields) or fields[0].startswith("#"):
            continue
        if column is None:
            if fields[0] != "id" or not (named := {"rating", "code"} & set(fields)):
                raise UserError(f"{where}: the header must be the exported one, id to rating or code, between tabs")
            column = fields.index(named.pop())
            continue
        if fields[0] not in place:
            raise UserError(f"{where}: no row {fields[0]!r} in the key; is it the key of another sheet?")
        if fields[0] in line_of:
            raise UserError(f"{where}: {fields[0]} is already on line {line_of[fields[0]]}; keep one of them")
        line_of[fields[0]] = number
        if text := fields[column] if column < len(fields) else "":
            values[place[fields[0]]] = _number(text, allowed, where)
    return values


def _number(text: str, allowed: Mapping[int, str], where: str) -> int:
    try:
        value = float(text)
    except ValueError:
        value = None
    if value not in allowed:
        raise UserError(f"{where}: {text!r} is none of {', '.join(map(str, sorted(allowed)))}; leave it empty or correct it")
    return int(value)
