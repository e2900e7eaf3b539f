"""Texts to ids: cleaning, start, end and padding by family, so that no default of a tokenizer library matters."""

from __future__ import annotations

import hashlib
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from siglip2_dense.encoders.text_cache import stamp
from siglip2_dense.errors import UserError, first_line
from siglip2_dense.files import digest


class Special(NamedTuple):
    """A token that is no text, and the id it must have."""

    token: str
    id: int


@dataclass(frozen=True)
class Style:
    """How a family writes a text as ids: start, pieces, end, padding on the right."""

    cleaning: str  # for people and records
    clean: Callable[[str], str]
    pad: Special
    end: Special | None
    start: Special | None = None


def _fold(text: str) -> str:
    return " ".join(text.split())


def _lower(text: str) -> str:
    return _fold(text).lower()


def _canonical(text: str) -> str:
    return _lower(text.replace("_", " ").translate(str.maketrans("", "", string.punctuation)))


STYLES = {
    # cleaned by open_clip's SimpleTokenizer itself
    "clip": Style(
        cleaning="mojibake and HTML entities mended, lower case, punctuation kept",
        clean=str,
        start=Special("<start_of_text>", 49406),
        end=Special("<end_of_text>", 49407),
        pad=Special("!", 0),
    ),
    # SigLIP 2; big_vision's demo and transformers' Siglip2Tokenizer keep punctuation, open_clip does not
    "gemma": Style("lower case, punctuation kept", _lower, pad=Special("<pad>", 0), end=Special("<eos>", 1)),
    # SigLIP, mSigLIP: pads are ends; cleaned as open_clip, transformers and big_vision's ImageNet evaluation do
    "t5": Style("lower case, punctuation removed", _canonical, pad=Special("</s>", 1), end=Special("</s>", 1)),
    # CLIPA: its separator is written as a pad; the tokenizer itself lower-cases
    "bert": Style(
        cleaning="lower case without accents, punctuation kept",
        clean=_fold,
        start=Special("[CLS]", 101),
        end=Special("[PAD]", 0),
        pad=Special("[PAD]", 0),
    ),
    "tips": Style("lower case, punctuation kept", _lower, pad=Special("<pad>", 0), end=None),
}


@dataclass(frozen=True)
class Rules:
    """What a tower wants of its tokenizer."""

    encoder: str
    style: str  # a key of STYLES
    context: int  # ids of a text
    rows: int  # of the tower's embedding
    repository: str = ""  # on the hub, of ``tokenizer.json``; none for "clip", whose vocabulary open_clip ships

    def about(self, fingerprint: str) -> dict:
        """Plain data for records and keys."""
        return dict(tokenizer=fingerprint, cleaning=STYLES[self.style].cleaning, context=self.context)


class TextTokenizer:
    """Texts -> (N, context) int64, and the fingerprint of the vocabulary behind it."""

    def __init__(self, rules: Rules, pieces: Callable[[list[str]], list[list[int]]], fingerprint: str):
        self.rules = rules
        self.pieces = pieces  # cleaned texts -> ids without start and end
        self.fingerprint = fingerprint

    def known(self) -> dict:
        return dict(fingerprint=self.fingerprint)

    @property
    def _ends(self) -> tuple[list[int], list[int]]:
        style = STYLES[self.rules.style]
        return [style.start.id] if style.start else [], [style.end.id] if style.end else []

    def counts(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each text has, with its start and end, before any are cut."""
        clean, more = STYLES[self.rules.style].clean, sum(map(len, self._ends))
        return [len(pieces) + more for pieces in self.pieces([clean(text) for text in texts])]

    def __call__(self, texts: Sequence[str]) -> Tensor:
        style, context = STYLES[self.rules.style], self.rules.context
        start, end = self._ends
        ids = torch.full((len(texts), context), style.pad.id, dtype=torch.int64)
        for row, pieces in zip(ids, self.pieces([style.clean(text) for text in texts]), strict=True):
            kept = [*start, *pieces][: context - len(end)] + end  # the end stays, however long the text
            row[: len(kept)] = torch.tensor(kept)
        if ids.numel() and ids.max() >= self.rules.rows:
            raise UserError(
                f"the tokenizer gives id {ids.max().item()}, of which {self.rules.encoder}'s text tower has no "
                f"embedding (it has {self.rules.rows}): a text contains a token that is no text, or it is the "
                "tokenizer of another encoder."
            )
        return ids


def origin_of_tokenizer(rules: Rules, source: str) -> str:
    """What tells a tokenizer without loading it. Raises UserError for a ``source`` that cannot be one."""
    if source == "hub":
        return f"tokenizer {rules.repository or rules.style}"
    if rules.style == "clip":
        raise UserError(
            f"tokenizer={source!r}: {rules.encoder} reads texts with the vocabulary that open_clip ships; leave it out."
        )
    path = Path(source).expanduser()
    if not path.exists():
        raise UserError(f"tokenizer={source!r} is not there; give 'hub', a tokenizer.json, or its folder.")
    return f"tokenizer {stamp(path.iterdir() if path.is_dir() else [path])}"


def load_tokenizer(rules: Rules, source: str) -> TextTokenizer:
    """The tokenizer of a tower.

    source: "hub", or a ``tokenizer.json`` or its folder. CLIP's vocabulary comes with open_clip and needs no file.
    Raises UserError when it cannot be had, cannot be read, or belongs to another encoder.
    """
    if rules.style == "clip":
        pieces, vocabulary, fingerprint = _of_clip()
    else:
        path = _fetched(rules) if source == "hub" else Path(source).expanduser()
        pieces, vocabulary, fingerprint = (_of_tips if rules.style == "tips" else _of_file)(rules, path)
    where = f"the tokenizer {source}" if source != "hub" else f"the tokenizer of {rules.repository}"
    _check_vocabulary(rules, vocabulary, where)
    return TextTokenizer(rules, pieces, fingerprint)


def _fetched(rules: Rules) -> Path:
    """The hub's ``tokenizer.json``; of TIPS, a folder with whatever is called a tokenizer there."""
    from huggingface_hub import hf_hub_download, snapshot_download

    try:
        if rules.style == "tips":
            folder = Path(snapshot_download(rules.repository, allow_patterns="*token*"))
            if not any(folder.glob("*token*")):  # without a network, the rest of the repository is all there is
                raise FileNotFoundError(f"none of its files in {folder}")
            return folder
        return Path(hf_hub_download(rules.repository, "tokenizer.json"))
    except Exception as error:  # the hub's client has many
        what = "the tokenizer files" if rules.style == "tips" else "tokenizer.json"
        raise UserError(
            f"the tokenizer of {rules.encoder} could not be fetched from the hub ({first_line(error)}); download "
            f"{what} of https://huggingface.co/{rules.repository} where there is a network and give its folder with "
            "tokenizer=FOLDER."
        ) from error


def _check_vocabulary(rules: Rules, vocabulary: dict[str, int], where: str) -> None:
    problems = []
    # BERT's fills 95 % of CLIPA's rows; mT5's has a hundred entries beyond mSigLIP's that stand for no text
    if not 0.9 * rules.rows <= len(vocabulary) <= 1.001 * rules.rows:
        problems.append(f"it has {len(vocabulary)} entries, the tower {rules.rows}")
    style = STYLES[rules.style]
    for special in dict.fromkeys(filter(None, (style.pad, style.start, style.end))):
        found = vocabulary.get(special.token)
        if found is None:
            problems.append(f"it has no {special.token!r}")
        elif found != special.id:
            problems.append(f"its {special.token!r} has id {found} instead of {special.id}")
    if problems:
        advice = f"give the one of https://huggingface.co/{rules.repository}" if rules.repository else "leave it out"
        raise UserError(f"{where} is not that of {rules.encoder}: {'; '.join(problems)}; {advice}.")


def _of_clip():
    from open_clip.tokenizer import SimpleTokenizer, default_bpe

    tokenizer = SimpleTokenizer()
    return lambda texts: [tokenizer.encode(text) for text in texts], tokenizer.encoder, digest(default_bpe())


def _of_file(rules: Rules, path: Path):
    from tokenizers import Tokenizer

    path = path / "tokenizer.json" if path.is_dir() else path
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exceptions
        raise UserError(
            f"{path} cannot be read as a tokenizer ({first_line(error)}); give the tokenizer.json of {rules.encoder}, "
            "or its folder."
        ) from error
    return *_of_library(tokenizer), digest(path)


def _of_library(tokenizer):
    tokenizer.no_padding()
    tokenizer.no_truncation()

    def pieces(texts):
        return [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]

    return pieces, tokenizer.get_vocab(with_added_tokens=True)


def _of_tips(rules: Rules, path: Path):
    """TIPS has a sentencepiece model, which transformers reads."""
    try:
        from transformers import Tipsv2Tokenizer
    except ImportError as error:
        raise UserError(f"{rules.encoder} reads texts through transformers: pip install -U transformers") from error
    try:
        library = Tipsv2Tokenizer.from_pretrained(path).backend_tokenizer
    except Exception as error:  # of sentencepiece, of transformers
        raise UserError(
            f"{path} cannot be read as a tokenizer ({first_line(error)}); give the folder with {rules.encoder}'s "
            "tokenizer files."
        ) from error
    return *_of_library(library), hashlib.sha256(library.to_str().encode()).hexdigest()
