"""Mining commonsense triples from text (Li et al. 2016; Jastrzębski et al. 2018, their human study).

    python -m kbc_jax.mine patterns --out patterns.json [--masc masc.txt.gz --data DIR --split official --top 15]
    python -m kbc_jax.mine extract --patterns patterns.json --text a.txt b.txt.gz --out candidates.tsv [--format wikitext]
    python -m kbc_jax.mine score --run RUN --candidates candidates.tsv --out scored.tsv
    python -m kbc_jax.mine walk --scored scored.tsv --out walk.tsv [--cuts thirds | omcs | 2.1 3.2] [--top 100]
    python -m kbc_jax.mine sheet --scored dnn=dnn.tsv factorized=factorized.tsv --out sheet.tsv --key key.json [--from 1000]
    python -m kbc_jax.mine agreement --key key.json anna.tsv ben.tsv
    python -m kbc_jax.mine novelty_sheet --of test --out sheet.tsv --key key.json [--rows 100 --nearest 3]
    python -m kbc_jax.mine novelty_table --key key.json sheet.tsv

Files of triples are tab-separated with a header: rel, head, tail, then columns of numbers: `count` (sentences) from `extract`,
`score` from `score`, `novelty` and `bucket` from `walk`. The data directory is --data, else QUINTET_DATA, else some toy facts.
"""

import argparse
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from kbc_jax.facts import embeddings, novelty
from kbc_jax.facts.data import RELATIONS, SPLITS, Lexicon, Triples, load_split
from kbc_jax.mining import candidates, ratings, selection, tagging
from training import files
from training.cli import guarded
from training.errors import UserError

FORMATS = (*tagging.READERS, "masc")


def patterns(args: argparse.Namespace) -> None:
    """Learn the tag sequences of heads and tails from the training triples."""
    train = load_split(args.split, args.data).train
    present = [relation for relation in candidates.MINED if relation in train.relation]
    if args.masc:
        tagger = tagging.UnigramTagger(tagging.read_masc(args.masc, _lemmas(train)))
    else:
        tagger = tagging.SpacyTagger()
    learnt = candidates.learn_patterns(train, tagger, relations=present, top=args.top, max_words=args.max_words)
    candidates.save_patterns(learnt, args.out)
    for relation, sides in learnt.items():
        head, tail = (", ".join(" ".join(tags) for tags, _ in side.most_common(3)) for side in sides)
        print(f"{RELATIONS[relation]}: {head} ... / {tail} ...")


def extract(args: argparse.Namespace) -> None:
    """Extract candidate triples that ConceptNet does not have from texts, with the number of sentences each is in."""
    learnt, split = candidates.load_patterns(args.patterns), load_split(args.split, args.data)
    known = Triples.concatenate(split.train, *(part.positives() for part in split[1:]))
    counted = candidates.candidates(
        _tag_texts(args.text, args.format, known),
        learnt,
        known=known,
        window=args.window,
        minimum=args.minimum,
        max_words=args.max_words,
    )
    if not counted:
        raise UserError(f"no candidate is in {args.minimum} sentences: give more text or a lower --minimum")
    triples, counts = candidates.as_triples(counted)
    candidates.write_mined(args.out, triples, count=counts)
    by_relation = Counter(triples.relation).most_common()
    print(f"{triples.size} candidates:", ", ".join(f"{RELATIONS[relation]} {n}" for relation, n in by_relation))


def _tag_texts(paths: list[str], form: str, known: Triples) -> Iterator[tuple[tagging.Token, ...]]:
    """Tagged sentences of all texts; `known` triples settle the lemmas of MASC."""
    if form == "masc":
        return itertools.chain.from_iterable(tagging.read_masc(path, _lemmas(known)) for path in paths)
    return tagging.SpacyTagger()(itertools.chain.from_iterable(map(tagging.READERS[form], paths)))


def _lemmas(triples: Triples) -> Counter:
    """Counts of the words of all phrases, which are lemmas."""
    return Counter(word for phrase in (*triples.head, *triples.tail) for word in phrase.split())


def score(args: argparse.Namespace) -> None:
    """Rank candidates by a trained run: the mean score of its seeds."""
    from kbc_jax.scoring import scorer

    triples, columns = candidates.read_mined(args.candidates)
    scores = scorer.load(args.workdir, args.selected_on).score(triples).mean(0)
    order = np.argsort(-scores, kind="stable")
    columns = {name: values[order] for name, values in columns.items() if name != "score"}
    candidates.write_mined(args.out, triples.take(order), **columns, score=scores[order])
    print(f"{triples.size} triples in {args.out}, best first")


def walk(args: argparse.Namespace) -> None:
    """Take a ranking's best triples in each range of novelty, and print the mean novelty of its top."""
    ranked, columns = _read_ranking(args.scored)
    split = load_split(args.split, args.data)
    lexicon = Lexicon.build(split.train, ranked)
    vectors = embeddings.word_vectors("skipgram", lexicon, split.train)

    def distance(triples: Triples) -> np.ndarray:
        return novelty.novelty(split.train, triples, lexicon, vectors)[0]

    cuts = selection.OMCS_CUTS if args.cuts == ["omcs"] else _cuts(args.cuts, lambda: selection.third_cuts(ranked, distance))
    buckets = selection.bucket_walk(ranked, distance, cuts, per_bucket=args.top)
    print("novelty cuts:", ", ".join(f"{cut:.3f}" for cut in cuts))
    rows = np.concatenate([bucket.rows for bucket in buckets])
    extra = {"novelty": np.concatenate([bucket.novelty for bucket in buckets])}
    extra["bucket"] = np.repeat(np.arange(len(buckets)), [len(bucket.rows) for bucket in buckets])
    candidates.write_mined(args.out, ranked.take(rows), **{name: values[rows] for name, values in columns.items()}, **extra)
    print("triples in each bucket:", ", ".join(str(len(bucket.rows)) for bucket in buckets))
    for count, mean in selection.mean_novelty_of_top(ranked, distance, (100, 1000, 10_000)).items():
        print(f"mean novelty of the best {count}: {mean:.2f}")


def _cuts(options: list[str], thirds: Callable[[], Sequence[float]]) -> Sequence[float]:
    """The values of --cuts; `thirds()` makes those of 'thirds'."""
    if options == ["thirds"]:
        return thirds()
    try:
        return [float(cut) for cut in options]
    except ValueError:
        raise UserError(f"--cuts takes 'thirds', 'omcs' or rising numbers, not {' '.join(options)!r}") from None


def _read_ranking(path: str) -> tuple[Triples, dict[str, np.ndarray]]:
    """Triples of a file by falling score, and its columns in the same order. Raises UserError without a column score."""
    triples, columns = candidates.read_mined(path)
    if "score" not in columns:
        raise UserError(f"{path} has no column score to rank by; it has {', '.join(columns) or 'no numbers'}")
    order = np.argsort(-columns["score"], kind="stable")
    return triples.take(order), {name: values[order] for name, values in columns.items()}


def sheet(args: argparse.Namespace) -> None:
    """Write a blinded rating sheet of each model's best triples and its key; of a walk, those of each bucket."""
    named, models = [item.partition("=")[::2] for item in args.scored], {}
    names = [name for name, path in named if name and path]
    if len(set(names)) < len(args.scored):
        raise UserError(f"--scored takes a name of its own for each file, NAME=FILE, not {' '.join(args.scored)!r}")
    for name, path in named:
        ranked, columns = _read_ranking(path)
        if "bucket" not in columns:
            models[name] = _pick_best(ranked, args.top, args.best or args.top, bool(args.best))
            continue
        for bucket in np.unique(columns["bucket"]):
            part = ranked.take(np.flatnonzero(columns["bucket"] == bucket))  # may be fewer than asked for
            best = min(args.best or args.top, part.size)
            models[f"{name}/{bucket:g}"] = _pick_best(part, min(args.top, best), best, bool(args.best))
    rows = ratings.export_sheet(models, args.out, args.key, seed=args.seed)
    print(f"{rows} rows in {args.out}; keep {args.key} from the raters")
    print(", ".join(f"{model}: {triples.size}" for model, triples in models.items()))


def _pick_best(ranked: Triples, count: int, best: int, draw: bool) -> Triples:
    """The `count` best triples of a ranking or, with `draw`, `count` random ones of the `best`."""
    drawn = selection.get_top(ranked, count, best)  # raises UserError if there are too few
    return drawn if draw else ranked.take(range(count))


def agreement(args: argparse.Namespace) -> None:
    """Print the agreement of raters and the mean rating of each model."""
    filled = ratings.import_sheets(args.sheets, args.key)
    for rater, values in zip(filled.raters, filled.values, strict=True):
        print(f"{rater}: {int((values >= 0).sum())} of {len(values)} rows filled in")
    for (a, x), (b, y) in itertools.combinations(zip(filled.raters, filled.values, strict=True), 2):
        print(f"{a} - {b}:", ", ".join(f"{name} {value:.4g}" for name, value in ratings.agreement(x, y).items()))
    for model, row in ratings.model_means(filled).items():
        print(f"{model}: mean {row['mean']:.2f} ± {row['error']:.2f} [{row['low']:.2f}, {row['high']:.2f}], n {row['n']}")


def novelty_sheet(args: argparse.Namespace) -> None:
    """Write a sheet of true triples, each beside its nearest training triples, for people to judge how new it is."""
    split = load_split(args.split, args.data)
    pools = {"test": split.test.positives, "train": lambda: split.train}
    pool = pools[args.of]() if args.of in pools else candidates.read_mined(args.of)[0]
    sample = np.random.default_rng(args.seed).permutation(pool.size)[: args.rows]
    rest = np.setdiff1d(np.arange(split.train.size), sample) if args.of == "train" else np.arange(split.train.size)
    triples, train = pool.take(sample), split.train.take(rest)
    lexicon = Lexicon.build(split.train, triples)
    vectors = embeddings.word_vectors("skipgram", lexicon, split.train)
    distance, nearest = novelty.neighbours(train, triples, lexicon, vectors, args.nearest)
    rows_of: dict[tuple[str, str], list[int]] = {}  # a pair's relations matter to the codes, so show all of them
    for row, pair in enumerate(zip(train.head, train.tail, strict=True)):
        rows_of.setdefault(pair, []).append(row)
    neighbours = [train.take([r for i in rows for r in rows_of[train.head[i], train.tail[i]]]) for rows in nearest]
    rows = ratings.export_novelty_sheet(triples, neighbours, distance[:, 0], args.out, args.key)
    print(f"{rows} rows in {args.out}; {args.key} has their novelty")


def novelty_table(args: argparse.Namespace) -> None:
    """Print the table of a filled novelty sheet: shares of the codes, means of near and far half, correlation with novelty."""
    filled = ratings.import_novelty_sheet(args.sheet, args.key)
    for name, value in ratings.novelty_summary(filled.codes, filled.novelty).items():
        print(f"{name}:", ", ".join(f"{k} {v:.0%}" for k, v in value.items()) if isinstance(value, dict) else f"{value:.4g}")


def main(argv: list[str]) -> None:
    """The command line."""
    args = _parser().parse_args(argv)
    for name in ("out", "key") if "out" in args else ():
        if name in args:
            files.check_place(getattr(args, name))
    args.run(args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m kbc_jax.mine", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(run: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        sub = commands.add_parser(run.__name__, help=run.__doc__, description=run.__doc__)
        sub.set_defaults(run=run)
        return sub

    for add in (_add_mining_commands, _add_rating_commands):
        add(command)
    return parser


def _add_data_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--data", default="", help="folder of the ConceptNet-100k files")
    sub.add_argument("--split", choices=SPLITS, default="official")


def _add_mining_commands(command: Callable) -> None:
    sub = command(patterns)
    _add_data_options(sub)
    sub.add_argument("--max-words", type=files.positive, default=5, help="longest phrase")
    sub.add_argument("--masc", default="", help="learn the tagger from this word_TAG file (MASC) instead of using spaCy's")
    sub.add_argument("--out", required=True, help="JSON file to write")
    sub.add_argument("--top", type=files.positive, default=15, help="tag sequences kept for each side of a relation")

    sub = command(extract)
    _add_data_options(sub)
    sub.add_argument("--max-words", type=files.positive, default=5, help="longest phrase")
    sub.add_argument("--patterns", required=True, help="JSON file of `patterns`")
    sub.add_argument("--text", nargs="+", required=True, help="files to read, plain or .gz")
    sub.add_argument("--format", choices=FORMATS, default="plain", help="masc: word_TAG, needs no spaCy")
    sub.add_argument("--out", required=True, help="TSV to write")
    sub.add_argument("--window", type=int, default=10, help="most words between head and tail")
    sub.add_argument("--minimum", type=files.positive, default=7, help="least number of sentences")

    sub = command(score)
    sub.add_argument("--run", required=True, dest="workdir", help="workdir of a completion run")
    sub.add_argument("--selected-on", default="", help="split whose dev sets chose the epoch; default: the run's first")
    sub.add_argument("--candidates", required=True, help="TSV of `extract`")
    sub.add_argument("--out", required=True, help="TSV to write, best first")

    sub = command(walk)
    _add_data_options(sub)
    sub.add_argument("--scored", required=True, help="TSV of `score`")
    sub.add_argument(
        "--cuts",
        nargs="+",
        default=["thirds"],
        help="thirds of the candidates (default), omcs (the paper's 3.22 4.31, for OMCS vectors), or rising numbers",
    )
    sub.add_argument("--top", type=files.positive, default=100, help="triples kept in each bucket")
    sub.add_argument("--out", required=True, help="TSV to write")


def _add_rating_commands(command: Callable) -> None:
    sub = command(sheet)
    sub.add_argument(
        "--scored", nargs="+", required=True, metavar="NAME=FILE", help="TSV with a column score, or one of `walk`"
    )
    sub.add_argument("--out", required=True, help="TSV for the raters")
    sub.add_argument("--key", required=True, help="JSON that tells which model picked what")
    sub.add_argument("--top", type=files.positive, default=100, help="triples of each model, or of each of its buckets")
    sub.add_argument("--from", type=files.positive, dest="best", default=0, metavar="L", help="draw them from the L best")
    sub.add_argument("--seed", type=int, default=777)

    sub = command(agreement)
    sub.add_argument("sheets", nargs="+", help="filled sheets, one of each rater")
    sub.add_argument("--key", required=True)

    sub = command(novelty_sheet)
    _add_data_options(sub)
    sub.add_argument("--of", required=True, help="test (its true triples), train, or a TSV of mined triples")
    sub.add_argument("--rows", type=files.positive, default=100)
    sub.add_argument("--nearest", type=files.positive, default=3, help="pairs of head and tail shown, with all their relations")
    sub.add_argument("--out", required=True, help="TSV for the annotators")
    sub.add_argument("--key", required=True, help="JSON with each row's novelty")
    sub.add_argument("--seed", type=int, default=777)

    sub = command(novelty_table)
    sub.add_argument("sheet", help="the filled sheet")
    sub.add_argument("--key", required=True)


if __name__ == "__main__":
    guarded(main)
