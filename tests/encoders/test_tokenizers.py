"""Ids of texts against open_clip, transformers and sentencepiece, with tokenizers that are trained here."""

import json

import open_clip
import pytest
import torch
from open_clip.tokenizer import HFTokenizer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from siglip2_dense.encoders.tokenizers import Rules, load_tokenizer
from siglip2_dense.errors import UserError

TEXTS = [
    "a cat",
    "A Photo of a TRAFFIC-light_pole,  with   blanks.",
    "crème brûlée & naïve café",
    "the don't-walk sign (red!)",
    "one two three four five six seven eight nine ten " * 12,
]
CORPUS = [*TEXTS, "a photo of a dog on the grass", "many cats and dogs in a street", "walls of brick"] * 4


def save(tokenizer, folder, **special):
    """A folder as the hub has it: ``tokenizer.json``, and what transformers wants beside it."""
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def gemma(tmp_path_factory):
    """SigLIP 2's kind: byte-pair encoding of text whose blanks are written as a character."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    lower = [text.lower() for text in CORPUS]
    tokenizer.train_from_iterator(lower, trainers.BpeTrainer(vocab_size=150, special_tokens=special))
    tokenizer.post_processor = processors.TemplateProcessing("$A <eos>", special_tokens=[("<eos>", 1)])
    tokenizer.enable_padding(direction="left", pad_id=3)  # settings in the file that must not matter
    return save(tokenizer, tmp_path_factory.mktemp("gemma"), pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


@pytest.fixture(scope="session")
def t5(tmp_path_factory):
    """SigLIP's kind: a unigram model whose end is also its padding."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=special, unk_token="<unk>")
    tokenizer.train_from_iterator([text.lower() for text in CORPUS], trainer)
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    return save(tokenizer, tmp_path_factory.mktemp("t5"), pad_token="</s>", eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="session")
def bert(tmp_path_factory):
    """CLIPA's kind: word pieces between [CLS] and [SEP]."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", *(f"[unused{i}]" for i in range(99)), "[UNK]", "[CLS]", "[SEP]"]
    tokenizer.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=260, special_tokens=special))
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 101), ("[SEP]", 102)]
    )
    names = dict(pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]")
    return save(tokenizer, tmp_path_factory.mktemp("bert"), **names)


def size(folder):
    return Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()


def rules(style, folder, context=64, rows=None):
    return Rules("some-encoder", style, context, rows or size(folder), "some/repository")


@pytest.mark.parametrize("model", ["ViT-B-16-quickgelu", "PE-Core-B-16", "PE-Core-bigG-14-448"])
def test_clip_equals_open_clip(model):
    theirs = open_clip.get_tokenizer(model)
    ours = load_tokenizer(Rules("clip", "clip", theirs.context_length, 49408), "hub")
    texts = [*TEXTS, "&lt;b&gt; &amp;amp; done", "", "naïve".encode().decode("latin-1")]
    assert torch.equal(ours(texts), theirs(texts))
    assert ours(texts).shape == (8, theirs.context_length)


def test_siglip2_pads_on_the_right_to_64_and_lower_cases(gemma):
    ours = load_tokenizer(rules("gemma", gemma), str(gemma))
    library = PreTrainedTokenizerFast.from_pretrained(gemma, padding_side="right")
    settings = dict(padding="max_length", truncation=True, max_length=64, return_tensors="pt")
    expected = library([" ".join(text.split()).lower() for text in TEXTS], **settings).input_ids
    ids = ours(TEXTS)
    assert torch.equal(ids, expected)
    assert ids.dtype == torch.int64 and ids.shape == (5, 64)
    assert ids[0, -1] == 0 and ids[-1, -1] == 1  # the long text keeps its end
    assert torch.equal(ours(["A Cat"]), ours(["a cat"]))
    assert not torch.equal(ours(["a cat."]), ours(["a cat"]))  # punctuation is kept


def test_siglip_equals_open_clip(t5):
    theirs = HFTokenizer(str(t5), context_length=16, clean="canonicalize")
    ours = load_tokenizer(rules("t5", t5, context=16), str(t5 / "tokenizer.json"))
    ids = ours(TEXTS)
    assert torch.equal(ids, theirs(TEXTS))
    assert torch.equal(ours(["a cat."]), ours(["A_cat"]))
    assert (ids[:, -1] == 1).all()  # ends are pads


def test_clipa_equals_open_clip(bert):
    theirs = HFTokenizer(str(bert), context_length=32, strip_sep_token=True)
    ours = load_tokenizer(rules("bert", bert, context=32), str(bert))
    ids = ours(TEXTS)
    assert torch.equal(ids, theirs(TEXTS))
    assert (ids[:, 0] == 101).all() and (ids[:, -1] == 0).all()


@pytest.fixture(scope="session")
def tips(tmp_path_factory):
    import sentencepiece

    folder = tmp_path_factory.mktemp("tips")
    (folder / "corpus.txt").write_text("\n".join(text.lower() for text in CORPUS))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=330,
        byte_fallback=True,
        pad_id=0,
        unk_id=1,
        bos_id=-1,
        eos_id=-1,
        minloglevel=2,
    )
    return folder


def test_tips_equals_sentencepiece(tips):
    import sentencepiece

    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tips / "tokenizer.model"))
    ours = load_tokenizer(Rules("tips", "tips", 64, 330), str(tips))
    for text, ids in zip(TEXTS, ours(TEXTS), strict=True):
        expected = theirs.encode(text.lower())[:64]
        assert ids.tolist() == expected + [0] * (64 - len(expected))


def test_a_tokenizer_of_another_encoder_is_refused(gemma, t5, bert):
    with pytest.raises(UserError, match="is not that of some-encoder: it has 150 entries, the tower 256000"):
        load_tokenizer(rules("gemma", gemma, rows=256000), str(gemma))
    with pytest.raises(UserError, match="it has no '<eos>'"):
        load_tokenizer(rules("gemma", t5), str(t5))
    with pytest.raises(UserError, match=r"it has no '</s>'.*https://huggingface.co/some/repository"):
        load_tokenizer(rules("t5", bert), str(bert))


def test_a_token_at_another_place_is_refused(gemma, tmp_path):
    content = (gemma / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(content.replace('"<eos>"', '"<x>"').replace('"<bos>"', '"<eos>"'))
    with pytest.raises(UserError, match="its '<eos>' has id 2 instead of 1"):
        load_tokenizer(rules("gemma", tmp_path), str(tmp_path))


def test_files_that_are_no_tokenizer_are_named(gemma, tmp_path):
    bad = tmp_path / "tokenizer.json"
    bad.write_text(json.dumps({"model": 3}))
    with pytest.raises(UserError, match=r"tokenizer\.json cannot be read as a tokenizer"):
        load_tokenizer(rules("gemma", gemma), str(tmp_path))
    with pytest.raises(UserError, match="cannot be read as a tokenizer"):
        load_tokenizer(Rules("tips", "tips", 64, 330), str(bad))


@pytest.mark.parametrize("style", ["gemma", "tips"])
def test_a_hub_that_cannot_be_reached(style):
    with pytest.raises(UserError, match=r"download .*tokenizer.* of https://huggingface.co/some/repository .*FOLDER"):
        load_tokenizer(Rules("x", style, 64, 100, "some/repository"), "hub")


def test_ids_without_an_embedding_are_refused(gemma, tmp_path):
    """mT5's vocabulary has a hundred entries more than mSigLIP's tower has rows; no text of words gives one of them."""
    tokenizer = Tokenizer(
        models.BPE(vocab={"<pad>": 0, "<eos>": 1} | {chr(97 + i): 2 + i for i in range(26)}, merges=[])
    )
    tokenizer.add_special_tokens(["<extra>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    few = Rules("x", "gemma", 8, 28, "some/repository")
    with pytest.raises(UserError, match="it has 29 entries, the tower 28"):
        load_tokenizer(few, str(tmp_path))
    tokenizer = load_tokenizer(Rules("x", "gemma", 8, 29, "some/repository"), str(tmp_path))
    tokenizer.rules = few
    assert tokenizer(["cat"]).tolist() == [[4, 2, 21, 1, 0, 0, 0, 0]]
    with pytest.raises(UserError, match="gives id 28, of which x's text tower has no embedding"):
        tokenizer(["<extra>"])
