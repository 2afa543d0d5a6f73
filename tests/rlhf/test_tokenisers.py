"""Tokenisers: made here, read from disk as published ones are laid out; EOS and padding always differ."""

import json

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from models import tokenisers
from training.errors import UserError

TEXTS = ["the cat sat on the mat, and the cat ate it.", "été  à la\tplage\n\n日本 🎉", ""]


@pytest.fixture(scope="module")
def bpe():
    return tokenisers.train_bpe(TEXTS, 280)


def test_bpe_encodes_any_text_and_gives_it_back(bpe):
    assert (bpe.eos, bpe.pad, bpe.size) == (0, 1, 280)
    for text in [*TEXTS, "  never seen: ŁØ \x00 \r\n zebra", "!"]:
        assert bpe.decode(bpe.encode(text)) == text
    assert len(bpe.encode(" the cat")) < len(" the cat") / 2  # pairs were merged
    assert bpe.encode_batch(TEXTS) == [bpe.encode(text) for text in TEXTS]
    assert bpe.encode("") == []


def test_bpe_does_not_depend_on_the_run(bpe):
    again = tokenisers.train_bpe(iter(TEXTS), 280)
    assert again.tokenizer.to_str() == bpe.tokenizer.to_str()
    assert tokenisers.train_bpe(["a"], 5000).size == 258  # nothing to merge


def test_characters_are_tokens():
    made = tokenisers.characters("0123456789+-=\n")
    assert made.encode("48+24=") == [6, 10, 12, 4, 6, 14]
    assert made.encode("1\n-") == [3, 15, 13]
    assert made.decode(made.encode("48+\n24=72")) == "48+\n24=72"
    assert (made.eos, made.pad, made.size) == (0, 1, 16)
    with pytest.raises(UserError, match=r"lacks \['\*', 'x'\].*clean the texts or widen its alphabet"):
        made.encode_batch(["1+1", "2*x"])


@pytest.mark.parametrize("alphabet", ["", "aba", ["ab", "c"]])
def test_alphabets_that_are_none(alphabet):
    with pytest.raises(UserError, match="an alphabet is some characters, each once"):
        tokenisers.characters(alphabet)


def test_decoding_stops_at_eos_and_skips_padding(bpe):
    ids = bpe.encode("the cat")
    rest = bpe.encode(" sat")
    assert bpe.decode([bpe.pad, *ids, bpe.pad, bpe.eos, *rest, bpe.eos]) == "the cat"
    assert bpe.decode([bpe.eos, *ids]) == ""
    rows = np.array([[bpe.pad] * 3 + ids, ids + [bpe.eos] * 3])
    assert bpe.decode_batch(rows) == ["the cat", "the cat"]


@pytest.mark.parametrize("kind", ["bpe", "characters"])
def test_saved_and_loaded(kind, bpe, tmp_path):
    made = bpe if kind == "bpe" else tokenisers.characters("abc \n")
    made.save(tmp_path / "new")
    again = tokenisers.load(tmp_path / "new")
    assert (again.size, again.eos, again.pad) == (made.size, made.eos, made.pad)
    text = "cab\nb a"
    assert again.encode(text) == made.encode(text) and again.decode(again.encode(text)) == text
    assert again.encode("a<|endoftext|>")[-1] == made.eos
    if kind == "bpe":
        tokenisers.train_bpe(TEXTS, 280, tmp_path / "trained")
        assert tokenisers.load(tmp_path / "trained").tokenizer.to_str() == again.tokenizer.to_str()


# Files as published models have them


def publish(folder, tokens, **files):
    """A tokenizer.json of whole words, which asks for padding and truncation, and other files of the folder."""
    made = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token=tokens[0]))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.enable_padding(length=9)
    made.enable_truncation(2)
    made.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return tokenisers.load(folder)


WORDS = ("<unk>", "good", "bad", "film", "a")
LAYOUTS = {
    "gpt2: its id in config.json, no padding": (
        (*WORDS, "<|endoftext|>"), {"config": {"eos_token_id": 5}, "tokenizer_config": {"model_max_length": 1024}},
        "<|endoftext|>", 6,
    ),
    "gpt2 with padding set to EOS": (
        (*WORDS, "<|endoftext|>"), {"tokenizer_config": {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}},
        "<|endoftext|>", 6,
    ),
    "pythia: padding known by its name only": (
        ("<|endoftext|>", "<|padding|>", *WORDS), {"tokenizer_config": {"eos_token": "<|endoftext|>"}}, "<|endoftext|>", 1,
    ),
    "llama: tokens as dicts": (
        ("<unk>", "<s>", "</s>", *WORDS[1:]),
        {"special_tokens_map": {"eos_token": {"content": "</s>", "lstrip": False}, "pad_token": {"content": "<unk>"}}},
        "</s>", 0,
    ),
    "several EOS in config.json": (
        (*WORDS, "<|end|>", "<|eot|>", "<|finetune_right_pad_id|>"), {"config": {"eos_token_id": [6, 5], "pad_token_id": None}},
        "<|eot|>", 7,
    ),
    "bert: a separator for an EOS": (("[PAD]", *WORDS, "[CLS]", "[SEP]"), {"config": {"pad_token_id": 0}}, "[SEP]", 0),
    "tokenizer_config.json before config.json": (
        (*WORDS, "</s>", "<pad>", "[PAD]"),
        {"tokenizer_config": {"eos_token": "</s>", "pad_token": "[PAD]"}, "config": {"eos_token_id": 1, "pad_token_id": 2}},
        "</s>", 7,
    ),
    "padding that the vocabulary lacks": (
        (*WORDS, "</s>"), {"tokenizer_config": {"eos_token": "</s>", "pad_token": "[pad]"}}, "</s>", 6,
    ),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_eos_and_padding_of_published_folders(layout, tmp_path):
    tokens, files, eos, pad = LAYOUTS[layout]
    found = publish(tmp_path, tokens, **files)
    assert found.eos == tokens.index(eos) and found.pad == pad != found.eos
    assert found.size == max(len(tokens), pad + 1)
    assert found.encode("a good film a good") == [tokens.index(word) for word in ("a", "good", "film", "a", "good")]
    found.save(tmp_path / "saved")
    again = tokenisers.load(tmp_path / "saved")
    assert (again.eos, again.pad, again.size) == (found.eos, found.pad, found.size)


def test_special_tokens_around_a_text(tmp_path):
    made = Tokenizer(
        models.WordPiece({t: i for i, t in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "c"))}, unk_token="[UNK]")
    )
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    made.save(str(tmp_path / "tokenizer.json"))
    found = tokenisers.load(tmp_path / "tokenizer.json")
    assert (found.eos, found.pad) == (3, 0)
    assert found.encode("A b") == [4, 5]
    assert found.encode("A b", special=True) == [2, 4, 5, 3]
    assert found.encode_batch(["a b c", "c"], special=True, limit=4) == [[2, 5, 6, 3], [2, 6, 3]]  # cut on the left
    assert found.encode_batch(["a b c", "c"], limit=2) == [[5, 6], [6]]
    assert found.encode_batch(["a b c"], special=True, limit=1) == [[2, 3]]


def test_padding_and_cutting():
    rows = [[5, 6], [1, 2, 3, 4], []]
    ids, mask = tokenisers.left_pad(rows, 3, 9)
    np.testing.assert_array_equal(ids, [[9, 5, 6], [2, 3, 4], [9, 9, 9]])
    np.testing.assert_array_equal(mask, [[0, 1, 1], [1, 1, 1], [0, 0, 0]])
    assert (ids.dtype, mask.dtype) == (np.int32, bool)
    ids, mask = tokenisers.right_pad(rows, 3, 9)
    np.testing.assert_array_equal(ids, [[5, 6, 9], [1, 2, 3], [9, 9, 9]])
    np.testing.assert_array_equal(mask, [[1, 1, 0], [1, 1, 1], [0, 0, 0]])
    for pad in (tokenisers.left_pad, tokenisers.right_pad):
        with pytest.raises(UserError, match="a length of 0 tokens holds nothing"):
            pad(rows, 0, 9)


def test_mistakes(tmp_path):
    with pytest.raises(UserError, match=r"tokenizer\.json is missing; give a folder"):
        tokenisers.load(tmp_path)
    with pytest.raises(UserError, match=r"nowhere is missing; give a folder"):
        tokenisers.load(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no file says which token ends a text; put eos_token into tokenizer_config.json"):
        publish(tmp_path, WORDS)
    with pytest.raises(UserError, match="no file says which token ends a text"):
        publish(tmp_path, WORDS, tokenizer_config={"eos_token": "</s>"}, config={"eos_token_id": 77})
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer_config\.json is damaged"):
        tokenisers.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="is not a tokenizer"):
        tokenisers.load(tmp_path)
    with pytest.raises(UserError, match=r"tokeniser.vocab 257 is too small"):
        tokenisers.train_bpe(TEXTS, 257)
    with pytest.raises(UserError, match="no text to train a tokeniser on"):
        tokenisers.train_bpe(["", ""], 300)
