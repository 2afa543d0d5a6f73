"""Mining commonsense triples from text (Li et al. 2016; Jastrzębski et al. 2018, their human study).

    python -m kbc_jax.mine patterns --out patterns.json [--data DIR --split official --top 15]
    python -m kbc_jax.mine extract --patterns patterns.json --text a.txt b.txt.gz --out candidates.tsv [--format wikitext]
    python -m kbc_jax.mine score --run RUN --candidates candidates.tsv --out scored.tsv
    python -m kbc_jax.mine walk --scored scored.tsv --out walk.tsv [--cuts 3.22 4.31 --top 100]
    python -m kbc_jax.mine sheet --scored dnn=dnn.tsv factorized=factorized.tsv --out sheet.tsv --key key.json
    python -m kbc_jax.mine agreement --key key.json anna.tsv ben.tsv
    python -m kbc_jax.mine novelty_sheet --of test --out sheet.tsv --key key.json [--rows 100]
    python -m kbc_jax.mine novelty_table --key key.json sheet.tsv

Files of triples are tab-separated with a header: rel, head, tail, then columns of numbers: `count` (sentences) from `extract`,
`score` from `score`, `novelty` and `bucket` from `walk`. The data directory is --data, else QUINTET_DATA, else some toy facts.
"""

import argparse
import itertools
from collections import Counter
from collections.abc import Iterator

import numpy as np

from kbc_jax import embeddings, mining, novelty, ratings, tagging
from kbc_jax.data import RELATIONS, SPLITS, Lexicon, Triples, load_split
from launch.cli import guarded
from training.errors import UserError

FORMATS = (*tagging.READERS, "masc")


def patterns(args: argparse.Namespace) -> None:
    """Learn the tag sequences of heads and tails from the training triples."""
    train = load_split(args.split, args.data).train
    present = [relation for relation in mining.MINED if relation in train.relation]
    found = mining.learn_patterns(train, tagging.SpacyTagger(), relations=present, top=args.top, max_words=args.max_words)
    mining.save_patterns(found, args.out)
    for relation, sides in found.items():
        head, tail = (", ".join(" ".join(tags) for tags, _ in side.most_common(3)) for side in sides)
        print(f"{RELATIONS[relation]}: {head} ... / {tail} ...")


def extract(args: argparse.Namespace) -> None:
    """Candidate triples of the texts that ConceptNet does not have, with the number of sentences each is in."""
    kept, split = mining.load_patterns(args.patterns), load_split(args.split, args.data)
    known = Triples.concatenate(split.train, *(part.positives() for part in split[1:]))
    counted = mining.candidates(
        _tagged(args.text, args.format, known),
        kept,
        known=known,
        window=args.window,
        minimum=args.minimum,
        max_words=args.max_words,
    )
    if not counted:
        raise UserError(f"no candidate is in {args.minimum} sentences: give more text or a lower --minimum")
    triples, counts = mining.as_triples(counted)
    mining.write_mined(args.out, triples, count=counts)
    by_relation = Counter(triples.relation).most_common()
    print(f"{triples.size} candidates:", ", ".join(f"{RELATIONS[relation]} {n}" for relation, n in by_relation))


def _tagged(paths: list[str], form: str, known: Triples) -> Iterator[tuple[tagging.Token, ...]]:
    if form == "masc":
        lemmas = Counter(word for phrase in (*known.head, *known.tail) for word in phrase.split())
        return itertools.chain.from_iterable(tagging.read_masc(path, lemmas) for path in paths)
    return tagging.SpacyTagger()(itertools.chain.from_iterable(map(tagging.READERS[form], paths)))


def score(args: argparse.Namespace) -> None:
    """Rank candidates by a trained run: the mean score of its seeds."""
    from kbc_jax import scorer

    triples, columns = mining.read_mined(args.candidates)
    scores = scorer.load(args.workdir, args.selected_on).score(triples).mean(0)
    order = np.argsort(-scores, kind="stable")
    columns = {name: values[order] for name, values in columns.items() if name != "score"}
    mining.write_mined(args.out, triples.take(order), **columns, score=scores[order])
    print(f"{triples.size} triples in {args.out}, best first")


def walk(args: argparse.Namespace) -> None:
    """A ranking's best triples in each range of novelty, and the mean novelty of its top."""
    ranked, columns = _scored(args.scored)
    split = load_split(args.split, args.data)
    lexicon = Lexicon.build(split.train, ranked)
    vectors = embeddings.word_vectors("skipgram", lexicon, split.train)

    def distance(triples: Triples) -> np.ndarray:
        return novelty.novelty(split.train, triples, lexicon, vectors)[0]

    buckets = mining.bucket_walk(ranked, distance, args.cuts, per_bucket=args.top)
    rows = np.concatenate([bucket.rows for bucket in buckets])
    found = {"novelty": np.concatenate([bucket.novelty for bucket in buckets])}
    found["bucket"] = np.repeat(np.arange(len(buckets)), [len(bucket.rows) for bucket in buckets])
    mining.write_mined(args.out, ranked.take(rows), **{name: values[rows] for name, values in columns.items()}, **found)
    print("triples in each bucket:", ", ".join(str(len(bucket.rows)) for bucket in buckets))
    for count, mean in mining.mean_novelty_of_top(ranked, distance, (100, 1000, 10_000)).items():
        print(f"mean novelty of the best {count}: {mean:.2f}")


def _scored(path: str) -> tuple[Triples, dict[str, np.ndarray]]:
    """Triples by falling score, with their columns in the same order."""
    triples, columns = mining.read_mined(path)
    if "score" not in columns:
        raise UserError(f"{path} has no column score to rank by; it has {', '.join(columns) or 'no numbers'}")
    order = np.argsort(-columns["score"], kind="stable")
    return triples.take(order), {name: values[order] for name, values in columns.items()}


def sheet(args: argparse.Namespace) -> None:
    """A blinded rating sheet of each model's best triples, and its key."""
    models = {}
    for item in args.scored:
        name, equals, path = item.partition("=")
        if not equals or not name or name in models:
            raise UserError(f"--scored takes a name of its own for each file, NAME=FILE, not {item!r}")
        models[name], _ = _scored(path)
    rows = ratings.export_sheet(models, args.out, args.key, top=args.top, seed=args.seed)
    print(f"{rows} rows in {args.out}; keep {args.key} from the raters")


def agreement(args: argparse.Namespace) -> None:
    """How raters agree, and the mean rating of each model."""
    filled = ratings.import_sheets(args.sheets, args.key)
    for rater, values in zip(filled.raters, filled.values, strict=True):
        print(f"{rater}: {int((values >= 0).sum())} of {len(values)} rows filled in")
    for (a, x), (b, y) in itertools.combinations(zip(filled.raters, filled.values, strict=True), 2):
        print(f"{a} - {b}:", ", ".join(f"{name} {value:.4g}" for name, value in ratings.agreement(x, y).items()))
    for model, row in ratings.model_means(filled).items():
        print(f"{model}: mean {row['mean']:.2f} ± {row['error']:.2f} [{row['low']:.2f}, {row['high']:.2f}], n {row['n']}")


def novelty_sheet(args: argparse.Namespace) -> None:
    """A sheet of true triples, each beside the nearest training triple, for people to say how new it is."""
    split = load_split(args.split, args.data)
    pools = {"test": split.test.positives, "train": lambda: split.train}
    pool = pools[args.of]() if args.of in pools else mining.read_mined(args.of)[0]
    picked = np.random.default_rng(args.seed).permutation(pool.size)[: args.rows]
    others = np.setdiff1d(np.arange(split.train.size), picked) if args.of == "train" else np.arange(split.train.size)
    triples, train = pool.take(picked), split.train.take(others)
    lexicon = Lexicon.build(split.train, triples)
    distance, nearest = novelty.novelty(train, triples, lexicon, embeddings.word_vectors("skipgram", lexicon, split.train))
    rows = ratings.export_novelty_sheet(triples, [train.take([i]) for i in nearest], distance, args.out, args.key)
    print(f"{rows} rows in {args.out}; {args.key} has their novelty")


def novelty_table(args: argparse.Namespace) -> None:
    """Table of a filled novelty sheet: share of each code, mean of the near and far halves, correlation with novelty."""
    filled = ratings.import_novelty_sheet(args.sheet, args.key)
    for name, value in ratings.novelty_summary(filled.codes, filled.novelty).items():
        print(f"{name}:", ", ".join(f"{k} {v:.0%}" for k, v in value.items()) if isinstance(value, dict) else f"{value:.4g}")


def main(argv: list[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m kbc_jax.mine", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(run) -> argparse.ArgumentParser:
        sub = commands.add_parser(run.__name__, help=run.__doc__, description=run.__doc__)
        sub.set_defaults(run=run)
        return sub

    def conceptnet(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--data", default="", help="folder of the ConceptNet-100k files")
        sub.add_argument("--split", choices=SPLITS, default="official")
        sub.add_argument("--max-words", type=int, default=5, help="longest phrase")

    sub = command(patterns)
    conceptnet(sub)
    sub.add_argument("--out", required=True, help="JSON file to write")
    sub.add_argument("--top", type=int, default=15, help="tag sequences kept for each side of a relation")

    sub = command(extract)
    conceptnet(sub)
    sub.add_argument("--patterns", required=True, help="JSON file of `patterns`")
    sub.add_argument("--text", nargs="+", required=True, help="files to read, plain or .gz")
    sub.add_argument("--format", choices=FORMATS, default="plain", help="masc: word_TAG, needs no spaCy")
    sub.add_argument("--out", required=True, help="TSV to write")
    sub.add_argument("--window", type=int, default=10, help="most words between head and tail")
    sub.add_argument("--minimum", type=int, default=7, help="least number of sentences")

    sub = command(score)
    sub.add_argument("--run", required=True, dest="workdir", help="workdir of a completion run")
    sub.add_argument("--selected-on", default="", help="split whose dev sets chose the epoch; default: the run's first")
    sub.add_argument("--candidates", required=True, help="TSV of `extract`")
    sub.add_argument("--out", required=True, help="TSV to write, best first")

    sub = command(walk)
    conceptnet(sub)
    sub.add_argument("--scored", required=True, help="TSV of `score`")
    sub.add_argument(
        "--cuts", type=float, nargs="+", default=mining.NOVELTY_CUTS, help="default: the paper's, for OMCS vectors"
    )
    sub.add_argument("--top", type=int, default=100, help="triples kept in each bucket")
    sub.add_argument("--out", required=True, help="TSV to write")

    sub = command(sheet)
    sub.add_argument("--scored", nargs="+", required=True, metavar="NAME=FILE", help="TSV with a column score")
    sub.add_argument("--out", required=True, help="TSV for the raters")
    sub.add_argument("--key", required=True, help="JSON that tells which model picked what")
    sub.add_argument("--top", type=int, default=100, help="best triples of each model")
    sub.add_argument("--seed", type=int, default=777)

    sub = command(agreement)
    sub.add_argument("sheets", nargs="+", help="filled sheets, one of each rater")
    sub.add_argument("--key", required=True)

    sub = command(novelty_sheet)
    conceptnet(sub)
    sub.add_argument("--of", required=True, help="test (its true triples), train, or a TSV of mined triples")
    sub.add_argument("--rows", type=int, default=100)
    sub.add_argument("--out", required=True, help="TSV for the annotators")
    sub.add_argument("--key", required=True, help="JSON with each row's novelty")
    sub.add_argument("--seed", type=int, default=777)

    sub = command(novelty_table)
    sub.add_argument("sheet", help="the filled sheet")
    sub.add_argument("--key", required=True)

    args = parser.parse_args(argv)
    args.run(args)


if __name__ == "__main__":
    guarded(main)
