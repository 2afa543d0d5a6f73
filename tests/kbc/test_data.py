"""Files read as they are written, and refused with file and line; the official counts; splits; numbers of words and phrases."""

import functools
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from kbc_jax.facts import data
from kbc_jax.facts.data import Lexicon, Triples, load_graph, load_split, phrase_means, read_triples, with_negatives
from training.errors import UserError


def differing(a, b):
    return sum(x != y for x, y in zip(a, b, strict=True))


def write(folder, content, name="dev1.tsv"):
    (folder / name).write_bytes(content)
    return folder / name


def test_blanks_case_and_line_ends_are_normalised(tmp_path):
    path = write(tmp_path, b"\xef\xbb\xbfIsA\tbig  Cat \tanimal\t1\r\n\n  \nAtLocation\t caf\xc3\xa9\ttown \t0")
    triples = read_triples(path, labelled=True)
    assert triples.keys() == [("isa", "big cat", "animal"), ("atlocation", "café", "town")]
    assert triples.label.tolist() == [True, False] and triples.label.dtype == bool


def test_confidence_of_a_training_file_is_no_label(tmp_path):
    """Columns to the right of the tail, and a blank tail end, are left out; every row is true."""
    path = write(tmp_path, b"isa\tcat\tanimal\t0\nisa\tdog\tanimal\t3.459\nisa\tcow\tanimal\t\nisa\tpig\tanimal\n")
    triples = read_triples(path, labelled=False)
    with pytest.raises(UserError, match=r"dev1.tsv line 2 has 5 columns.*relation, head, tail$"):
        read_triples(write(tmp_path, b"isa\tcat\tanimal\nisa\tcat\tanimal\t1\tx"), labelled=False)
    assert triples.label.all() and triples.head == ("cat", "dog", "cow", "pig") and set(triples.tail) == {"animal"}


GOOD = b"isa\tcat\tanimal\t1\nisa\tdog\tfish\t0\n"
BAD = {
    "two columns": (b"isa\tcat", "columns"),
    "no label": (b"isa\tcat\tanimal", "columns.*relation, head, tail, label"),
    "five columns": (b"isa\tcat\tanimal\t1\tx", "5 columns"),
    "blanks for tabs": (b"isa cat animal 1", "1 columns"),
    "unknown relation": (b"IsNot\tcat\tanimal\t1", "'IsNot'.*AtLocation"),
    "empty head": (b"isa\t \tanimal\t1", "head is empty"),
    "empty tail": (b"isa\tcat\t\t1", "tail is empty"),
    "label 2": (b"isa\tcat\tanimal\t2", "'2' is not 0 or 1"),
    "empty label": (b"isa\tcat\tanimal\t", "'' is not 0 or 1"),
    "Latin-1": (b"isa\tcaf\xe9\tanimal\t1", "UTF-8"),
}


@pytest.mark.parametrize("line, message", BAD.values(), ids=BAD)
def test_a_bad_line_is_named(tmp_path, line, message):
    path = write(tmp_path, GOOD + line + b"\n" + GOOD)
    with pytest.raises(UserError, match=f"{path} line 3.*{message}"):
        read_triples(path, labelled=True)


def test_a_dev_file_of_one_class_is_refused(tmp_path):
    for label, message in ((b"0", "only false"), (b"1", "only true")):
        path = write(tmp_path, b"isa\tcat\tanimal\t" + label + b"\nisa\tdog\tanimal\t" + label)
        with pytest.raises(UserError, match=f"{path}.*{message}"):
            read_triples(path, labelled=True)


def test_what_is_empty_or_missing_is_named(tmp_path):
    path = write(tmp_path, b"\n \n")
    for labelled in (True, False):
        with pytest.raises(UserError, match=f"{path} is empty"):
            read_triples(path, labelled=labelled)
    with pytest.raises(UserError, match=f"{tmp_path / 'none.tsv'}.*QUINTET_DATA"):
        read_triples(tmp_path / "none.tsv", labelled=False)
    with pytest.raises(UserError, match=r"train100k.tsv"):
        load_split("official", str(tmp_path))
    with pytest.raises(UserError, match="no split 'offical'; there are official"):
        load_split("offical", "toy")
    with pytest.raises(UserError, match="no graph 'cn'; there are cn100k and cn82k"):
        load_graph("cn", "toy")
    with pytest.raises(UserError, match=str(tmp_path / "gone")):
        load_split("official", str(tmp_path / "gone"))


def test_a_wrong_environment_is_no_reason_for_toy_facts(tmp_path, monkeypatch):
    monkeypatch.setenv("QUINTET_DATA", str(tmp_path))
    with pytest.raises(UserError, match=f"QUINTET_DATA is {tmp_path}, which has no folder conceptnet100k"):
        load_split("official")


def test_a_folder_by_argument_or_environment(tmp_path, monkeypatch):
    folder = tmp_path / "conceptnet100k"
    folder.mkdir()
    for name in data.FILES.values():
        write(folder, GOOD.replace(b"\t1\n", b"\n").replace(b"\t0\n", b"\n") if "train" in name else GOOD, name)
    monkeypatch.delenv("QUINTET_DATA", raising=False)
    by_argument = load_split("official", str(folder))
    monkeypatch.setenv("QUINTET_DATA", str(tmp_path))
    by_environment = load_split("official")
    for one, other in zip(by_argument, by_environment, strict=True):
        assert one.keys() == other.keys() and one.size == 2
    assert load_split("official", "toy").train.size > 1000  # the facts of this project, whatever the environment says


def test_triples_are_taken_and_joined_by_rows():
    triples = Triples.of([("isa", "a", "b"), ("hasa", "c", "d"), ("isa", "e", "f")], [True, False, True])
    assert triples.size == 3 and triples.take([2, 0]).keys() == [("isa", "e", "f"), ("isa", "a", "b")]
    assert triples.take([1]).label.tolist() == [False]
    assert triples.positives().keys() == [("isa", "a", "b"), ("isa", "e", "f")]
    joined = Triples.concatenate(triples, triples.take([1]))
    assert (
        joined.keys() == [*triples.keys(), ("hasa", "c", "d")]
        and joined.source is None
        and joined.label.tolist() == [True, False, True, False]
    )


def test_kept_corruptions():
    """Rows named after their number show which positive a negative comes from, which slot is new and whose it is."""
    n = 400
    positives = Triples.of([(f"r{i}", f"h{i}", f"t{i}") for i in range(n)])
    triples = with_negatives(positives, np.random.default_rng(0))
    assert triples.size == 2 * n and triples.keys()[:n] == positives.keys()
    assert triples.label.tolist() == [True] * n + [False] * n
    drawn, others = [], []
    for key in triples.keys()[n:]:
        assert [word[0] for word in key] == list("rht")
        numbers = [int(word[1:]) for word in key]
        row = Counter(numbers).most_common(1)[0][0]
        slot = next((k for k in range(3) if numbers[k] != row), None)
        if slot is not None:  # one in n replaces a slot by itself
            drawn.append((slot, row))
            others.append(numbers[slot])
            assert numbers.count(row) == 2
    assert n - 6 < len(drawn) == len(set(drawn))  # of the 3n, without replacement
    assert {slot: 100 < k < 170 for slot, k in Counter(slot for slot, _ in drawn).items()} == {0: True, 1: True, 2: True}
    per_positive = Counter(Counter(row for _, row in drawn).values())
    assert set(per_positive) == {1, 2, 3} and len({row for _, row in drawn}) < 0.8 * n  # and some positives have none
    assert 0.55 < len(set(others)) / n < 0.7 and max(others) > 0.95 * n and min(others) < 0.05 * n  # with replacement: 1 - 1/e


def all_near(keys, positives):
    """True if each key is a positive with at most one slot replaced by that of another."""
    pairs = ({(r, h) for r, h, _ in positives}, {(r, t) for r, _, t in positives}, {(h, t) for _, h, t in positives})
    columns = [set(column) for column in zip(*positives, strict=True)]
    whole = all((r, h) in pairs[0] or (r, t) in pairs[1] or (h, t) in pairs[2] for r, h, t in keys)
    return whole and all(word in column for key in keys for word, column in zip(key, columns, strict=True))


@functools.cache
def load_all(folder):
    return {name: load_split(name, folder) for name in data.SPLITS}


@pytest.fixture(scope="module")
def files():
    if not os.environ.get("QUINTET_DATA"):
        pytest.skip("QUINTET_DATA is not set: no ConceptNet-100k files to read")
    return os.path.join(os.environ["QUINTET_DATA"], "conceptnet100k")


@pytest.fixture(scope="module", params=["toy", "files"])
def folder(request):
    return "toy" if request.param == "toy" else request.getfixturevalue("files")


@pytest.fixture(scope="module")
def splits(folder):
    return load_all(folder)


@pytest.mark.parametrize("name", data.SPLITS)
def test_every_split_has_positives_then_as_many_near_negatives(splits, name):
    assert splits[name].train.label.all()
    for part in splits[name][1:]:
        n = part.size // 2
        assert part.label.tolist() == [True] * n + [False] * n
        assert all_near(part.keys()[n:], part.keys()[:n])


@pytest.mark.parametrize("name", data.SPLITS)
def test_every_negative_knows_the_positive_that_it_corrupts(splits, name):
    for part in splits[name][1:]:
        keys, n = part.keys(), part.size // 2
        assert part.source[:n].tolist() == list(range(n))
        assert all(differing(keys[n + i], keys[row]) <= 1 for i, row in enumerate(part.source[n:]))
        assert (part.source[n:].tolist() == list(range(n))) == (name == "official")
        assert part.take(range(n)).source is None and part.positives().source is None


def test_only_files_of_pairs_have_sources():
    rows = [("isa", "a", "b"), ("isa", "c", "d"), ("isa", "a", "d"), ("hasa", "c", "d")]
    label = [True, True, False, False]
    assert data.add_source(Triples.of(rows, label)).source.tolist() == [0, 1, 0, 1]
    others = ([rows[i] for i in (0, 1, 3, 2)], label), (rows, label[::-1]), (rows[:3], label[:3])
    assert all(data.add_source(Triples.of(*other)).source is None for other in others)


@pytest.mark.parametrize("name", data.SPLITS)
def test_training_triples_are_no_test_positives(splits, name):
    train, *parts = splits[name]
    train = set(train.keys())
    positives = [set(part.positives().keys()) for part in parts]
    assert [len(known & train) for known in positives] == [0, 0, 0]
    assert sum(map(len, positives)) == len(set.union(*positives)) == sum(part.size // 2 for part in parts)


def test_redrawn_keeps_the_positives_and_random_deals_them_again(splits):
    official, redrawn, random = (splits[name] for name in ("official", "redrawn", "random"))
    for old, new, dealt in zip(official[1:], redrawn[1:], random[1:], strict=True):
        n = old.size // 2
        assert new.keys()[:n] == old.keys()[:n] and new.size == dealt.size == old.size
        assert sum(a != b for a, b in zip(new.keys()[n:], old.keys()[n:], strict=True)) > 0.9 * n
        assert len(set(dealt.positives().keys()) & set(old.keys()[:n])) < 0.2 * n
    assert redrawn.train.keys() == official.train.keys() and random.train.size == official.train.size

    def pool(split):
        return Counter(Triples.concatenate(*(part.positives() for part in split)).keys())

    assert pool(random) == pool(official)


def test_draws_follow_the_seed_and_the_deal_does_not(splits, folder):
    again, other = load_split("random", folder), load_split("random", folder, seed=1)
    for one, same, new in zip(splits["random"], again, other, strict=True):
        assert one.keys() == same.keys()
        assert one.positives().keys() == new.positives().keys()
    assert splits["random"].test.keys() != other.test.keys()


def test_official_sizes_and_counts(files):
    train, *parts = load_all(files)["official"]
    assert train.size == 100_000 and [part.size for part in parts] == [1200, 1200, 2400]
    common = Counter(train.relation)
    assert (common["isa"], common["atlocation"], common["usedfor"], common["haspainintensity"]) == (14_925, 14_380, 13_221, 1)
    assert Path(files, "rel.txt").read_text().split() == list(data.RELATIONS)
    lexicon = Lexicon.build(train, *parts, width=8)
    assert lexicon.seen.sum() == 21_457 and len(lexicon.phrases) == 78_334
    assert sum(len(phrase.split()) > 8 for phrase in lexicon.phrases) < 0.002 * len(lexicon.phrases)


def test_official_negatives(files):
    """Row N/2 + i corrupts one slot of row i; 22 of the 2,400 are training triples all the same."""
    train, *parts = load_all(files)["official"]
    known, slots, true = set(train.keys()), Counter(), 0
    for part in parts:
        n = part.size // 2
        keys = part.keys()
        for positive, negative in zip(keys[:n], keys[n:], strict=True):
            assert differing(positive, negative) == 1
            slots[next(k for k in range(3) if positive[k] != negative[k])] += 1
            true += negative in known
    assert true == 22 and slots == {0: 397 + 204 + 201, 1: 412 + 196 + 193, 2: 391 + 200 + 206}


def test_the_deal_is_the_authors(files):
    """Rows 0-1199 of RandomState(777)'s shuffle are the test set; the training triples came first in what was shuffled."""
    official, random = (load_all(files)[name] for name in ("official", "random"))
    order = np.random.RandomState(777).permutation(102_400)
    for part, rows in ((random.test, order[:1200]), (random.dev1, order[1200:1800]), (random.dev2, order[1800:2400])):
        old = rows < 100_000
        assert part.take(np.flatnonzero(old)).keys() == official.train.take(rows[old]).keys()


def test_sizes_of_the_random_split_and_of_cn82k(files):
    assert [part.size for part in load_all(files)["random"]] == [100_000, 1200, 1200, 2400]
    train, *parts = load_all(files)["cn82k"]
    assert train.size == 81_920 and [part.size for part in parts] == [1200, 1200, 2400]
    _, valid, test = load_graph("cn82k", files)
    assert valid.size == test.size == 10_240
    for part, source in zip(parts, (valid, valid, test), strict=True):
        assert set(part.positives().keys()) <= set(source.keys())
    assert [part.size for part in load_graph("cn100k", files)] == [100_000, 1200, 1200]


def test_toy_facts_stand_in_for_every_split(monkeypatch):
    monkeypatch.delenv("QUINTET_DATA", raising=False)
    sizes = {name: [part.size for part in load_split(name)] for name in data.SPLITS}
    assert len(set(map(tuple, sizes.values()))) == 1 and sizes["official"][1:] == [100, 100, 200]
    assert [part.size for part in load_graph("cn82k")] == [part.size for part in load_graph("cn100k")]
    official = load_split("official")
    for part in official[1:]:
        rows = part.keys()
        assert all(differing(rows[i], rows[part.size // 2 + i]) <= 1 for i in range(part.size // 2))
    assert {*official.train.relation} <= {*data.RELATIONS}


def test_lexicon_by_hand():
    train = Triples.of([("isa", "big cat", "animal"), ("hasa", "cat", "long tail of cat")])
    other = Triples.of([("usedfor", "old saw", "cat")])
    lexicon = Lexicon.build(train, other, width=3)
    assert lexicon.words[:2] == ("", "UUUNKKK") and len(set(lexicon.words)) == len(lexicon.words) == 10
    assert {lexicon.words[i] for i in np.flatnonzero(lexicon.seen)} == {"big", "cat", "animal", "long", "tail", "of"}
    assert {lexicon.words[i] for i in np.flatnonzero(~lexicon.seen)} == {"", "UUUNKKK", "old", "saw"}
    assert set(lexicon.phrases) == {"big cat", "cat", "animal", "long tail of cat", "old saw"}
    assert lexicon.phrase_words.shape == (5, 3) and lexicon.phrase_words.dtype == np.int32
    spelled = [" ".join(lexicon.words[w] for w in row).strip() for row in lexicon.phrase_words]
    assert spelled == [" ".join(phrase.split()[:3]) for phrase in lexicon.phrases]
    ids = lexicon.ids(other)
    assert ids.dtype == np.int32 and ids.shape == (1, 3)
    assert [lexicon.phrases[i] for i in ids[0, [0, 2]]] == ["old saw", "cat"] and lexicon.relations[ids[0, 1]] == "usedfor"


def test_unseen_words_on_either_side():
    train = Triples.of([("isa", "big cat", "animal")])
    other = Triples.of(
        [("isa", "cat", "big animal"), ("isa", "old cat", "animal"), ("isa", "cat", "big thing"), ("isa", "cat", "x")]
    )
    assert Lexicon.build(train, other).unseen(other).tolist() == [False, True, True, True]
    assert Lexicon.build(train, other, width=1).unseen(other).tolist() == [False, True, False, True], "words that are cut off"


def test_new_phrases_are_encoded_and_have_no_id():
    lexicon = Lexicon.build(Triples.of([("isa", "cat", "animal")]), width=4)
    cat = lexicon.words.index("cat")
    assert lexicon.encode(["cat zebra cat", "", "zebra"]).tolist() == [[cat, 1, cat, 0], [0, 0, 0, 0], [1, 0, 0, 0]]
    with pytest.raises(UserError, match="'cat animal'"):
        lexicon.ids(Triples.of([("isa", "cat", "cat animal")]))


def test_phrase_means_against_a_loop():
    rng = np.random.default_rng(0)
    vectors, words = rng.normal(size=(9, 5)).astype(np.float32), rng.integers(1, 9, (7, 4)).astype(np.int32)
    lengths = [4, 1, 2, 3, 0, 4, 2]
    for row, length in zip(words, lengths, strict=True):
        row[length:] = 0
    means = phrase_means(vectors, words)  # the vector of padding, which is not zero here, counts nowhere
    expected = [sum((vectors[w] for w in row[:n]), np.zeros(5)) / max(n, 1) for row, n in zip(words, lengths, strict=True)]
    assert means.dtype == np.float32 and not means[4].any()
    np.testing.assert_allclose(means, expected, rtol=1e-6, atol=1e-7)
