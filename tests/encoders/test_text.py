"""The text encoder as a frozen module, its sentences, its cache and its errors."""

import json
import math
from concurrent.futures import ThreadPoolExecutor

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from torch import nn
from torch.nn import functional as F

from siglip2_dense.encoders import TextEncoder, text_cache, text_towers
from siglip2_dense.encoders.prompts import SETS, clean_name, fill, templates_of
from siglip2_dense.errors import UserError
from siglip2_dense.registry import MODELS, build

TINY = dict(width=32, layers=3, heads=4, vocab_size=300, embed_dim=24)  # in open_clip's names


def randomise(model, seed=0):
    """All parameters random: zero biases and unit norms hide errors."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2 + ("norm" in name or "ln_" in name))
    return model.eval()


def ids(context, count=3, vocabulary=300):
    """Ids with CLIP's end (the highest) somewhere inside."""
    drawn = torch.randint(2, vocabulary - 1, (count, context), generator=torch.Generator().manual_seed(1))
    for row, end in zip(drawn, (3, context - 1, context // 2), strict=False):
        row[end] = vocabulary - 1
        row[end + 1 :] = 0
    return drawn


def test_stays_frozen_and_out_of_the_module_tree():
    encoder = build(MODELS, dict(type="TextEncoder", name="clip-base-16-224", weights="random", model_args=TINY))
    model = nn.Sequential(encoder)
    tower = encoder.tower
    model.train()
    assert not encoder.training and not tower.training
    assert not list(model.parameters()) and not model.state_dict() and not list(encoder.children())
    assert not any(parameter.requires_grad for parameter in tower.parameters())
    model.double()
    assert encoder(ids(77)).dtype == torch.float64
    tower.ln_final.weight.requires_grad_(True)  # parts of it can be trained through forward
    encoder(ids(77)).sum().backward()
    assert tower.ln_final.weight.grad.abs().max() > 0


def test_random_weights_follow_the_seed_and_leave_the_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = (
        TextEncoder("clip-base-16-224", weights=weights, model_args=TINY).fingerprint
        for weights in ("random", "random:0", "random:1")
    )
    assert torch.equal(torch.rand(3), expected)
    assert first == again != other


# names and templates


def test_names_and_templates():
    assert clean_name(" wall-brick_old ") == "wall brick old"
    assert fill(["wall-brick", "{x}"], ["a {}.", "{} {}"]) == [
        "a wall brick.",
        "wall brick wall brick",
        "a {x}.",
        "{x} {x}",
    ]
    assert templates_of("single") == ("a photo of a {}.",)
    assert templates_of("name") == ("{}",)
    assert templates_of("scene") == ("A photo of a {} in the scene",)
    assert templates_of(80) == templates_of("80")  # as a command line gives it
    assert len(templates_of("80")) == 80 and len(templates_of("7-best")) == 7
    assert [t.replace("{}", "cat") for t in templates_of("7-best")] == [
        f("cat") for f in open_clip.SIMPLE_IMAGENET_TEMPLATES
    ]
    assert "a photo of a {}." in templates_of("80")
    assert all("{}" in template for name in SETS for template in templates_of(name))


@pytest.mark.parametrize(
    "names, templates, message",
    [
        ([], "single", "the list is empty"),
        (["a", " _"], "single", "entry 1 is ' _'"),
        (["a", 3], "single", "entry 1 is 3"),
        ("cat", "single", "give a list of names"),
        (["a"], "simple", "give a list of sentences with {}, or a set"),
        (["a"], ["a photo"], "'a photo' has no {}"),
        (["a"], [], "templates: the list is empty"),
    ],
)
def test_bad_names_and_templates(names, templates, message):
    with pytest.raises(UserError, match=message):
        TextEncoder("clip-base-16-224", weights="random", model_args=TINY).encode(names, templates)


# encode and its cache


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """``cached(**changes)`` -> an encoder with weights and a tokenizer in files, and a cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    letters = {"<pad>": 0, "<eos>": 1, " ": 2, ".": 3} | {chr(97 + i): 4 + i for i in range(26)}
    (tmp_path / "tokens").mkdir()
    Tokenizer(models.BPE(vocab=letters, merges=[])).save(str(tmp_path / "tokens" / "tokenizer.json"))
    sizes = {**TINY, "vocab_size": 30}
    tower = randomise(TextEncoder("siglip2-base-16-256", weights="random", model_args=sizes).tower)
    save_file({f"text.{key}": value for key, value in tower.state_dict().items()}, tmp_path / "tower.safetensors")

    def make(**changes):
        arguments = dict(weights=tmp_path / "tower.safetensors", tokenizer=tmp_path / "tokens", model_args=sizes)
        return TextEncoder("siglip2-base-16-256", **{**arguments, **changes})

    make.folder = tmp_path
    make.tower = tower
    return make


@pytest.fixture
def no_towers(monkeypatch):
    """Building a tower or loading a tokenizer is an error from now on."""

    def forbid():
        def refuse(*args, **kwargs):
            raise AssertionError("nothing should be loaded")

        monkeypatch.setattr("siglip2_dense.encoders.text.build", refuse)
        monkeypatch.setattr("siglip2_dense.encoders.text.load_tokenizer", refuse)

    return forbid


def test_encode_averages_normalised_sentences(cached):
    encoder = cached(cache=False)
    names, templates = ["Cat", "brick-wall", "dog"], ["a photo of a {}.", "{}"]
    numbers = encoder.tokenize(["a photo of a cat.", "cat", "a photo of a brick wall.", "brick wall"])
    single = encoder.encode(names, templates, average=False)
    assert single.shape == (3, 2, 24) and single.dtype == torch.float32
    expected = F.normalize(encoder(numbers), dim=-1).view(2, 2, 24)
    assert (single[:2] - expected).abs().max() < 1e-6
    average = encoder.encode(names, templates)
    assert (average[:2] - F.normalize(expected[:, 0] / 2 + expected[:, 1] / 2, dim=-1)).abs().max() < 1e-6
    assert average.norm(dim=-1).tolist() == pytest.approx([1, 1, 1])
    assert not list(cached.folder.glob("cache/**/*.safetensors"))


def test_upper_and_lower_case_are_one(cached):
    encoder = cached()
    numbers = encoder.tokenize(["A Cat", "a cat"])
    assert torch.equal(*numbers) and numbers.shape == (2, 64)
    assert torch.equal(*encoder.encode(["A Cat", "a cat"]))


def test_what_is_cached_needs_no_tower(cached, no_towers):
    names = ["cat", "dog", "cat"]
    first = cached()
    expected = first.encode(names, "7-best")
    known = first.fingerprint, first.tokenization
    no_towers()
    again = cached()
    assert torch.equal(again.encode(names, "7-best"), expected)
    assert torch.equal(again.encode(["dog"], "7-best"), expected[1:2])  # texts are remembered, not lists
    assert (again.fingerprint, again.tokenization) == known
    assert known[1]["cleaning"] == "lower case, punctuation kept" and known[1]["context"] == 64
    with pytest.raises(AssertionError, match="nothing should be loaded"):
        again.encode(["cow"], "7-best")


def test_new_names_and_templates_change_the_result_and_cost_only_themselves(cached, monkeypatch):
    plain = cached(cache=False)
    encoder = cached()
    encoder.encode(["cat", "dog"])
    seen = []
    compute = TextEncoder._compute
    monkeypatch.setattr(TextEncoder, "_compute", lambda self, texts: seen.extend(texts) or compute(self, texts))
    encoder = cached()
    assert torch.allclose(encoder.encode(["cow", "dog"]), plain.encode(["cow", "dog"]), atol=1e-6)
    assert torch.allclose(encoder.encode(["cat"], "name"), plain.encode(["cat"], "name"), atol=1e-6)
    assert [text for text in seen if "cow" in text or text == "cat"][:1] == ["a photo of a cow."]
    seen.clear()
    cached().encode(["dog", "horse", "cow"])
    assert seen == ["a photo of a horse."]


def test_another_tower_or_tokenizer_shares_nothing(cached):
    ours = cached().encode(["cat"], "name")
    other = cached(weights="random").encode(["cat"], "name")
    assert not torch.allclose(ours, other, atol=1e-3)
    fewer = cached(model_args={**TINY, "vocab_size": 30, "heads": 2}).encode(["cat"], "name")  # the same weights
    assert not torch.allclose(ours, fewer, atol=1e-3)
    content = json.loads((cached.folder / "tokens" / "tokenizer.json").read_text())
    content["model"]["vocab"] |= {"c": content["model"]["vocab"]["z"], "z": content["model"]["vocab"]["c"]}
    (cached.folder / "other.json").write_text(json.dumps(content))
    swapped = cached(tokenizer=cached.folder / "other.json")
    assert torch.allclose(swapped.encode(["cat"], "name"), ours, atol=1e-3) is False
    assert torch.allclose(swapped.encode(["zat"], "name"), ours, atol=1e-6)


def test_a_file_that_is_written_anew_is_another_tower(cached):
    before = cached().encode(["cat"])
    tower = randomise(cached.tower, seed=9)
    save_file({f"text.{key}": value for key, value in tower.state_dict().items()}, cached.folder / "tower.safetensors")
    assert not torch.allclose(cached().encode(["cat"]), before, atol=1e-3)


def test_a_corrupt_cache_is_computed_again(cached):
    expected = cached().encode(["cat", "dog"])
    (file,) = cached.folder.glob("cache/**/*.safetensors")
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], b"", whole[:-96] + bytes(96)):  # cut, empty, zeros for a vector
        file.write_bytes(content)
        assert torch.allclose(cached().encode(["cat", "dog"]), expected, atol=1e-6)
        assert file.read_bytes() == whole
    for path in cached.folder.glob("cache/**/*.json"):
        path.write_text("{")
    assert torch.equal(cached().encode(["cat", "dog"]), expected)


def test_a_cache_that_cannot_be_written_only_costs_time(cached, monkeypatch):
    (cached.folder / "taken").write_text("a file where a folder should be")
    expected = cached(cache=False).encode(["cat"])
    monkeypatch.setenv("XDG_CACHE_HOME", str(cached.folder / "taken"))
    assert torch.allclose(cached().encode(["cat"]), expected, atol=1e-6)


def test_what_the_hub_has_anew_replaces_what_was_remembered(cached, monkeypatch):
    """Known texts come from the cache; a new one loads the tower, and if that is another, nothing old is mixed in."""
    monkeypatch.setattr(text_towers, "_fetched", lambda plan: cached.folder / "tower.safetensors")
    first = cached(weights="hub")
    old = first.encode(["cat"])
    tower = randomise(cached.tower, seed=9)
    save_file({f"text.{key}": value for key, value in tower.state_dict().items()}, cached.folder / "tower.safetensors")
    again = cached(weights="hub")
    assert torch.equal(again.encode(["cat"]), old)
    both = again.encode(["cat", "dog"])
    assert torch.allclose(both, cached(cache=False).encode(["cat", "dog"]), atol=1e-6)
    assert again.fingerprint != first.fingerprint
    assert not torch.allclose(both[:1], old, atol=1e-3)


def test_the_cache_is_quick_and_in_few_files(tmp_path, monkeypatch):
    """13,000 names in 7 templates."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    texts = [f"sentence number {i}" for i in range(91_000)]
    vectors = F.normalize(torch.randn(len(texts), 8), dim=-1)
    place = text_cache.folder({"a": "tower"})
    for first in range(0, len(texts), 4096):
        text_cache.write(place, texts[first : first + 4096], vectors[first : first + 4096])
    assert len(list(place.iterdir())) == math.ceil(91_000 / 4096)
    out = torch.empty(len(texts) + 1, 8)
    assert text_cache.read(place, ["another", *reversed(texts)], out) == [0]
    assert torch.equal(out[1:].flip(0), vectors)


def test_writers_at_once_lose_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    place = text_cache.folder({"a": "tower"})
    texts = [f"sentence {i}" for i in range(60)]
    vectors = F.normalize(torch.randn(len(texts), 8), dim=-1)

    def work(first):  # each shares half of its texts with the next, and four processes have the same
        part = slice(first % 5 * 10, first % 5 * 10 + 20)
        text_cache.write(place, texts[part], vectors[part])
        out = torch.empty(20, 8)
        assert text_cache.read(place, texts[part], out) == [] and torch.equal(out, vectors[part])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(20)))
    out = torch.empty(60, 8)
    assert text_cache.read(place, texts, out) == [] and torch.equal(out, vectors)
    assert len(list(place.iterdir())) == 5


def test_lower_precision_is_not_stored(cached):
    encoder = cached().bfloat16()
    assert encoder.tower.ln_final.weight.dtype == torch.bfloat16  # it is built after the cast
    assert encoder.encode(["cat"]).dtype == torch.float32
    assert not list(cached.folder.glob("cache/**/*.safetensors"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = cached().encode(["cat"])
    assert torch.allclose(inside, cached(cache=False).encode(["cat"]), atol=1e-6)


# errors


def test_an_encoder_without_texts():
    with pytest.raises(UserError, match=r"dinov2-base-14 was not trained with texts.* clip, .*siglip2"):
        TextEncoder("dinov2-base-14")


def test_hub_that_cannot_be_reached():
    expected = (
        r"clip-base-16-224 could not be fetched.*open_clip_model.safetensors of https://huggingface.co/timm/vit_base"
    )
    with pytest.raises(UserError, match=expected + r".*weights=FILE, or"):
        TextEncoder("clip-base-16-224").encode(["cat"])
    with pytest.raises(
        UserError, match=r"model.safetensors of https://huggingface.co/google/siglip2-base-patch16-naflex"
    ):
        TextEncoder("siglip2-base-16-naflex").tower  # noqa: B018
    with pytest.raises(UserError, match=r"the tokenizer of siglip2-base-16-256 could not be fetched.*tokenizer=FOLDER"):
        TextEncoder("siglip2-base-16-256", weights="random", model_args=TINY).tokenize(["cat"])


def test_files_that_do_not_fit_are_named(cached, tmp_path):
    tower = tmp_path / "bad.safetensors"
    state = {f"text.{key}": value for key, value in cached.tower.state_dict().items()}
    save_file({**state, "text.extra": torch.ones(1)}, tower)
    with pytest.raises(
        UserError, match=r"bad.safetensors does not hold the text tower of siglip2.*: extra is not part"
    ):
        cached(weights=tower).tower  # noqa: B018
    del state["text.ln_final.bias"]
    state["text.positional_embedding"] = torch.zeros(16, 32)
    save_file(state, tower)
    with pytest.raises(UserError, match=r"ln_final.bias is missing; positional_embedding has shape \(16, 32\) instead"):
        cached(weights=tower).tower  # noqa: B018
    save_file({"visual.proj": torch.ones(1)}, tower)
    with pytest.raises(UserError, match=r"bad.safetensors has no text tower.*begins with visual.proj"):
        cached(weights=tower).tower  # noqa: B018
    tower.write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"bad.safetensors: truncated"):
        cached(weights=tower).tower  # noqa: B018


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(weights="random:x"), "whole number"),
        (dict(weights="nowhere.safetensors"), "a file or folder that exists"),
        (dict(tokenizer="nowhere.json"), "tokenizer='nowhere.json' is not there"),
        (dict(model_args=dict(wdth=3)), "no setting 'wdth': did you mean 'width'"),
    ],
)
def test_bad_arguments(cached, changes, message):
    with pytest.raises(UserError, match=message):
        cached(**changes)


def test_clip_needs_no_tokenizer(cached):
    with pytest.raises(UserError, match="the vocabulary that open_clip ships; leave it out"):
        TextEncoder("clip-base-16-224", weights="random", tokenizer=str(cached.folder), model_args=TINY)


def test_a_tower_that_was_changed_is_not_remembered(cached):
    one, other = cached(), cached()
    before = one.encode(["a zebra"])
    with torch.no_grad():
        one.tower.text_projection.weight.add_(torch.randn(24, 32))
    changed = one.double().float().encode(["a zebra", "a horse"])
    assert not torch.allclose(changed[0], before[0], atol=1e-3)
    assert torch.equal(other.encode(["a zebra"]), before)
    assert torch.allclose(other.encode(["a horse"]), cached(cache=False).encode(["a horse"]), atol=1e-5)
