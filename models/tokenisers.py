"""Text to token ids and back: Hugging Face's tokenizer.json from disk, or one made here in the same format.

EOS and padding are never the same token: whether a response has ended is read off its EOS (async_rlhf; Huang et al. 2024).
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from models.minilm import read_tokenizer
from training.errors import UserError

FILE, SETTINGS = "tokenizer.json", "tokenizer_config.json"
EOS, PAD = "<|endoftext|>", "<|padding|>"  # Pythia's names and ids (0, 1)
PADS = (PAD, "[PAD]", "<pad>", "<|pad|>", "<|finetune_right_pad_id|>")  # in vocabularies whose files name no padding
BYTES = 256


@dataclasses.dataclass(frozen=True)
class Tokeniser:
    """A tokenizer with the ids of EOS and padding, which differ."""

    tokenizer: Tokenizer
    eos: int
    pad: int

    @property
    def size(self) -> int:
        """One above the highest id. A model's vocabulary may be larger (padded)."""
        return 1 + max(self.tokenizer.get_vocab().values())

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Ids of one text. See `encode_batch`."""
        return self.encode_batch([text], special)[0]

    def encode_batch(self, texts: Sequence[str], special: bool = False, limit: int | None = None) -> list[list[int]]:
        """Ids of texts. Names of special tokens that stand in a text ('<|endoftext|>') are read as these tokens.

        Args:
          special: add what the tokenizer puts around a text ([CLS] and [SEP] of BERT, <s> of Llama).
          limit: drop tokens on the left until a text, special tokens included, has no more than these.

        Raises:
          UserError: a character that the vocabulary lacks.
        """
        try:
            encodings = self.tokenizer.encode_batch(list(texts), add_special_tokens=False)
        except Exception as error:  # the library raises nothing more specific
            lacking = sorted(c for c in set("".join(texts)) if self.tokenizer.token_to_id(c) is None)
            raise UserError(f"the tokeniser lacks {lacking} ({error}); clean the texts or widen its alphabet") from None
        around = self.tokenizer.num_special_tokens_to_add(False) if special else 0
        for encoding in encodings if limit is not None else ():
            encoding.truncate(max(limit - around, 0), direction="left")
        return [(self.tokenizer.post_process(x) if special else x).ids for x in encodings]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of one sequence up to its first EOS, without padding and other special tokens."""
        return self.decode_batch([ids])[0]

    def decode_batch(self, rows: Iterable[Iterable[int]]) -> list[str]:
        """`decode` of each row of a list or an array."""
        return self.tokenizer.decode_batch([self._text(row) for row in rows])

    def _text(self, row: Iterable[int]) -> list[int]:
        row = [int(i) for i in row]
        end = row.index(self.eos) if self.eos in row else len(row)
        return [i for i in row[:end] if i != self.pad]

    def files(self) -> dict[str, bytes]:
        """tokenizer.json and tokenizer_config.json: `load`, `from_files` and transformers' AutoTokenizer read them."""
        names = {"eos_token": self.tokenizer.id_to_token(self.eos), "pad_token": self.tokenizer.id_to_token(self.pad)}
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **names}
        return {FILE: self.tokenizer.to_str(pretty=True).encode(), SETTINGS: json.dumps(settings, indent=2).encode()}

    def save(self, folder: Path | str) -> None:
        """Write `files` into a folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files().items():
            (folder / name).write_bytes(content)


def from_files(files: Mapping[str, bytes]) -> Tokeniser:
    """The tokeniser whose `files` these are."""
    tokenizer, settings = Tokenizer.from_str(files[FILE].decode()), json.loads(files[SETTINGS])
    return Tokeniser(tokenizer, *(tokenizer.token_to_id(settings[name]) for name in ("eos_token", "pad_token")))


def load(path: Path | str) -> Tokeniser:
    """Read the tokenizer of a Hugging Face folder, or a tokenizer.json (whose folder may say what its EOS is).

    EOS: as the folder's files say, else [SEP] (BERT). Padding: as they say or by a usual name, if that is not EOS; else a new
    token '[PAD]' behind the last id.

    Raises UserError for a missing or damaged file, or without an EOS.
    """
    path = Path(path)
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{file} is missing; give a folder with a Hugging Face {FILE}")
    tokenizer = read_tokenizer(file)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    named = [_named(file.parent, kind) for kind in ("eos_token", "sep_token", "pad_token")]
    eos = _first(tokenizer, [*named[0], *named[1], "[SEP]"])
    if eos is None:
        raise UserError(f"{file.parent}: no file says which token ends a text; put eos_token into {SETTINGS}")
    pad = _first(tokenizer, [*named[2], *PADS], other_than=eos)
    if pad is None:
        tokenizer.add_special_tokens(["[PAD]"])
        pad = tokenizer.token_to_id("[PAD]")
    return Tokeniser(tokenizer, eos, pad)


def _named(folder: Path, kind: str) -> list[str | int]:
    """What the folder's files call a token: names, then ids."""
    names: list[str | int] = []
    for name in (SETTINGS, "special_tokens_map.json"):
        value = _settings(folder / name).get(kind)
        names.append(value.get("content") if isinstance(value, dict) else value)
    ids = _settings(folder / "config.json").get(f"{kind}_id")
    return [x for x in (*names, *(ids if isinstance(ids, list) else [ids])) if x is not None]


def _settings(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); fetch it again") from None


def _first(tokenizer: Tokenizer, tokens: list[str | int], other_than: int | None = None) -> int | None:
    """The first of these tokens that the vocabulary has."""
    for token in tokens:
        name = tokenizer.id_to_token(token) if isinstance(token, int) else token
        known = None if name is None else tokenizer.token_to_id(name)
        if known is not None and known != other_than:
            return known
    return None


def train_bpe(texts: Iterable[str], vocab: int, path: Path | str | None = None) -> Tokeniser:
    """Byte-level BPE (Radford et al. 2019) learnt from texts, with EOS 0 and padding 1; any text can be encoded.

    Args:
      vocab: most tokens it may have; few texts give fewer.
      path: folder to save it in, if any.
    """
    if vocab < BYTES + 2:
        raise UserError(f"tokeniser.vocab {vocab} is too small: {BYTES} bytes and two special tokens need {BYTES + 2}")
    if not (texts := [text for text in texts if text]):
        raise UserError("there is no text to train a tokeniser on: check config.data")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=[EOS, PAD], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    ))  # fmt: skip
    made = Tokeniser(tokenizer, eos=0, pad=1)
    if path is not None:
        made.save(path)
    return made


def characters(alphabet: Iterable[str]) -> Tokeniser:
    """One token a character, in the order of `alphabet` from id 2; EOS 0, padding 1. Encoding other characters fails."""
    letters = list(alphabet)
    if not letters or len(set(letters)) < len(letters) or any(len(letter) != 1 for letter in letters):
        raise UserError(f"an alphabet is some characters, each once; got {letters}")
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate((EOS, PAD, *letters))}))
    tokenizer.add_special_tokens([EOS, PAD])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return Tokeniser(tokenizer, eos=0, pad=1)


def left_pad(rows: Sequence[Sequence[int]], length: int, pad: int) -> tuple[np.ndarray, np.ndarray]:
    """Prompts: ids int32 [n, length] with padding on the left, mask bool (False = padding); the last `length` ids are kept."""
    ids, mask = _empty(len(rows), length, pad)
    for i, row in enumerate(rows):
        kept = row[-length:]
        ids[i, length - len(kept) :] = kept
        mask[i, length - len(kept) :] = True
    return ids, mask


def right_pad(rows: Sequence[Sequence[int]], length: int, pad: int) -> tuple[np.ndarray, np.ndarray]:
    """Responses: ids int32 [n, length] with padding on the right, mask bool (False = padding); the first ids are kept."""
    ids, mask = _empty(len(rows), length, pad)
    for i, row in enumerate(rows):
        kept = row[:length]
        ids[i, : len(kept)] = kept
        mask[i, : len(kept)] = True
    return ids, mask


def _empty(rows: int, length: int, pad: int) -> tuple[np.ndarray, np.ndarray]:
    if length < 1:
        raise UserError(f"a length of {length} tokens holds nothing; it must be above 0")
    return np.full((rows, length), pad, np.int32), np.zeros((rows, length), bool)
