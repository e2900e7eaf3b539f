"""Segmentation by names: synonyms and thresholds by hand, large vocabularies against the map built in full."""

import math

import pytest
import torch

from siglip2_dense.contracts import Geometry
from siglip2_dense.errors import UserError
from siglip2_dense.models.windows import window_boxes
from siglip2_dense.tasks import ZeroShotSegmentation, queries
from siglip2_dense.tasks.windows import blend


def cells(scores):
    """One window whose cells are pixels: scores (K, h, w)."""
    scores = torch.as_tensor(scores, dtype=torch.float32)
    size = tuple(scores.shape[1:])
    return [(scores, Geometry(size, (0, 0, *size), size, size, size))]


def make_windows(count, resized=(44, 61), original=(51, 70), crop=32, stride=20, patch=8, seed=0):
    """Random raw maps of the windows of an image, padded around the centre to the patch."""
    numbers = torch.Generator().manual_seed(seed)
    windows = []
    for box in window_boxes(resized, crop, stride):
        padded = tuple(-(-side // patch) * patch for side in box[2:])
        start = tuple((whole - side) // 2 for whole, side in zip(padded, box[2:], strict=True))
        raw = 3 * torch.randn(count, padded[0] // patch, padded[1] // patch, generator=numbers)
        windows.append((raw, Geometry(padded, (*start, *box[2:]), box[2:], resized, original, box)))
    return windows


def logits(*probabilities):
    return [math.log(p) for p in probabilities]


def test_the_best_name_decides_not_the_sum_over_a_class():
    """Two names of "cat" at 0.3 each are less sure than one of "dog" at 0.4."""
    task = ZeroShotSegmentation(["cat", "dog"], queries={"cat": ["cat", "kitten"]})
    assert task.queries == ("cat", "kitten", "dog") and task.channels == 3
    scores = torch.tensor([logits(0.3, 0.3, 0.4), logits(0.35, 0.41, 0.24)]).T[:, None]
    assert task.predict(cells(scores)).tolist() == [[1, 0]]


def test_names_in_a_line_are_parted_at_commas():
    task = ZeroShotSegmentation(["wall", "building, edifice", "sky"], queries={"sky": ["clouds, and blue"]})
    assert task.queries == ("wall", "building", "edifice", "clouds, and blue")
    assert task.labels.tolist() == [0, 1, 1, 2]
    assert task.classes == ("wall", "building, edifice", "sky")  # as the data call them


VECTORS = {"wall": [1.0, 0, 0], "building": [0, 1.0, 0], "edifice": [0, 0, 1.0], "bag": [0.6, 0.8, 0]}


def encode(names):
    return torch.tensor([VECTORS[name] for name in names])


@pytest.mark.parametrize(
    ("rule", "queries", "vectors"),
    [
        ("each", ("wall", "building", "edifice"), [[1, 0, 0], [0, 1, 0], [0, 0, 1]]),
        ("first", ("wall", "building"), [[1, 0, 0], [0, 1, 0]]),
        ("mean", ("wall", "building, edifice"), [[1, 0, 0], [0, 0.5**0.5, 0.5**0.5]]),
    ],
)
def test_rules_for_synonyms_by_hand(rule, queries, vectors):
    task = ZeroShotSegmentation(["wall", "building, edifice"], synonyms=rule)
    assert task.queries == queries and task.channels == len(queries) and task.meaning["synonyms"] == rule
    assert torch.allclose(task.texts(encode), torch.tensor(vectors).float())
    stacked = task.texts(lambda names: torch.stack([encode(names)] * 2, dim=1))  # two sentences for each name
    assert stacked.shape == (len(queries), 2, 3) and torch.allclose(stacked[:, 1], torch.tensor(vectors).float())
    scores = torch.einsum("ke,e->k", task.texts(encode), torch.tensor([0, 0.2, 1.0]))
    assert task.predict(cells(scores[:, None, None])).item() == 1


@pytest.mark.parametrize("rule", ["each", "first", "mean"])
def test_names_that_are_given_are_no_synonyms(rule):
    """The rule is for a class's own name; what is asked for instead is queries of their own."""
    task = ZeroShotSegmentation(["wall", "sky, air"], {"wall": ["building, edifice", "wall"]}, synonyms=rule)
    assert task.queries[:2] == ("building, edifice", "wall") and task.labels[:2].tolist() == [0, 0]


def test_of_equal_first_synonyms_the_first_class_wins():
    """As in ADE20K-847, where "bag" begins three names: asked for by it alone, the later two are never predicted."""
    classes = ["wall", "bag", "bag, handbag, purse"]
    task = ZeroShotSegmentation(classes, synonyms="first")
    assert task.queries == ("wall", "bag", "bag") and task.labels.tolist() == [0, 1, 2]
    text = task.texts(encode)
    pixels = torch.nn.functional.normalize(torch.rand(8, 9, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    found = task.predict(cells(torch.einsum("hwe,ke->khw", pixels, text)))
    assert found.unique().tolist() == [0, 1]


def test_a_background_that_is_only_what_is_unsure():
    task = ZeroShotSegmentation(["background", "cat", "dog"], {"background": []}, background_threshold=0.8)
    assert task.queries == ("cat", "dog") and task.labels.tolist() == [1, 2]
    scores = torch.tensor([logits(0.9, 0.1), logits(0.3, 0.7), logits(0.15, 0.85)]).T[:, None]
    assert task.predict(cells(scores)).tolist() == [[1, 0, 2]]
    with pytest.raises(UserError, match="'background' is to be asked for by nothing"):
        ZeroShotSegmentation(["background", "cat"], {"background": []})
    with pytest.raises(UserError, match="no name to ask for"):
        ZeroShotSegmentation(["background"], {"background": []}, background_threshold=0.5)


def test_unsure_pixels_are_background_by_hand():
    """Best probabilities 0.5, 0.5, 0.49 and 0.6 of three queries; the last is one of the background's own."""
    task = ZeroShotSegmentation(
        ["background", "cat"], queries={"background": ["sky", "sea"]}, background_threshold=0.495
    )
    pixels = [logits(0.2, 0.3, 0.5), logits(0.3, 0.2, 0.5), logits(0.3, 0.21, 0.49), logits(0.1, 0.6, 0.3)]
    found = task.predict(cells(torch.tensor(pixels).T[:, None]))
    assert found.tolist() == [[1, 1, 0, 0]]
    task.background_threshold = None
    assert task.predict(cells(torch.tensor(pixels).T[:, None])).tolist() == [[1, 1, 1, 0]]


def test_the_scale_of_the_scores_decides_what_is_sure():
    """Two queries 0.1 apart: 1 / (1 + exp(-0.1 s)) is 0.52 at s = 1 and 0.98 at s = 40."""
    task = ZeroShotSegmentation(["background", "cat"], background_threshold=0.9)
    cosines = torch.tensor([0.2, 0.3])[:, None, None]
    assert task.predict(cells(cosines)).item() == 0 and task.predict(cells(40 * cosines)).item() == 1
    _, probability = queries.best_query(cells(40 * cosines))
    assert probability.item() == pytest.approx(1 / (1 + math.exp(-4)), rel=1e-5)


def brute_force(task, windows):
    """The large map of probabilities, a maximum over each class's queries, the best class, the threshold."""
    probabilities = blend(windows).double().softmax(0)
    classes = torch.zeros(len(task.classes), *probabilities.shape[1:], dtype=torch.float64)
    for label, values in zip(task.labels.tolist(), probabilities, strict=True):
        classes[label] = torch.maximum(classes[label], values)
    best, prediction = classes.max(0)
    if task.background_threshold is not None:
        prediction[best < task.background_threshold] = 0
    return prediction, best


@pytest.mark.parametrize("threshold", [None, 0.2])
@pytest.mark.parametrize("count", [1, 16, 40, 847])
def test_equals_the_map_built_in_full(count, threshold):
    """Windows that overlap, odd sizes, an original of another size; every third class has two names."""
    names = ["background", *(f"class {k}" for k in range(1, count))]
    asked = {name: [name, f"{name} again"] for name in names[2::3]}
    task = ZeroShotSegmentation(names, asked, threshold)
    windows = make_windows(task.channels)
    if count == 847:
        windows = [(2 * raw, place) for raw, place in windows]  # or no pixel would be sure
    expected, best = brute_force(task, windows)
    found = task.predict(windows)
    assert found.dtype == torch.int64 and found.shape == (51, 70)
    clear = torch.ones_like(best, dtype=torch.bool) if threshold is None else (best - threshold).abs() > 1e-5
    assert (found == expected)[clear].float().mean() > 0.999 and clear.float().mean() > 0.99
    if threshold and count > 1:
        assert 0.02 < (found == 0).float().mean() < 0.98
    _, probability = queries.best_query(windows)
    assert (probability - best).abs().max() < 2e-6


def test_windows_over_one_another_are_averaged_too():
    """As with flip=True: the same window twice, with other scores."""
    task = ZeroShotSegmentation(["background", "a", "b"], background_threshold=0.5)
    windows = make_windows(3) + make_windows(3, seed=1)
    expected, _ = brute_force(task, windows)
    assert torch.equal(task.predict(windows), expected)
    plain = ZeroShotSegmentation(["background", "a", "b"])
    assert torch.equal(plain.predict(windows), brute_force(plain, windows)[0])


@pytest.mark.parametrize("threshold", [None, 0.2])
def test_the_map_of_all_queries_is_never_built(threshold, monkeypatch):
    task = ZeroShotSegmentation(["background", *map(str, range(200))], background_threshold=threshold)
    sizes = []
    original = queries.blend
    monkeypatch.setattr(queries, "blend", lambda windows: sizes.append(len(windows[0][0])) or original(windows))
    monkeypatch.setattr("siglip2_dense.tasks.segmentation.blended_argmax", None)
    task.predict(make_windows(201))
    assert max(sizes, default=0) <= queries.QUERIES_AT_ONCE and sum(sizes) == (201 if threshold else 0)


def test_of_large_images_fewer_maps_are_there_at_a_time(monkeypatch):
    task = ZeroShotSegmentation(["background", *map(str, range(20))], background_threshold=0.2)
    windows = make_windows(21)
    expected = task.predict(windows)
    sizes = []
    original = queries.blend
    monkeypatch.setattr(queries, "blend", lambda windows: sizes.append(len(windows[0][0])) or original(windows))
    for pixels, count in ((3 * 51 * 70, 3), (100, 1)):
        monkeypatch.setattr(queries, "PIXELS_AT_ONCE", pixels)
        assert torch.equal(task.predict(windows), expected) and max(sizes) == count
        sizes.clear()


def test_scores_count_classes_not_queries():
    task = ZeroShotSegmentation(["a", "b"], queries={"a": ["x", "y", "z"]})
    metric = task.metric()
    metric.update(torch.tensor([[0, 1]]), torch.tensor([[0, 0]]), 0)
    metric.sync()
    assert metric.num_classes == 2 and metric.compute()["aAcc"] == 50
    asked = {"a": ["x", "y", "z"], "b": ["b"]}
    expected = {"classes": ["a", "b"], "queries": asked, "synonyms": "each", "background_threshold": None}
    assert task.meaning == expected
    with pytest.raises(UserError, match="nothing to learn"):
        task.loss(None, (), ())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(background_threshold=0.1), "would become 'cat'"),
        (dict(classes=["cat", "background"], background_threshold=0.1), "would become 'cat'"),
        (dict(classes=["background", "cat"], background_threshold=0), "between 0 and 1, or None"),
        (dict(classes=["background", "cat"], background_threshold=True), "between 0 and 1, or None"),
        (dict(classes=["background", "cat"], background_threshold="low"), "between 0 and 1, or None"),
        (dict(queries={"dogs": ["dog"]}), "did you mean 'dog'"),
        (dict(queries={"dog": []}), "by nothing; give a list of names"),
        (dict(synonyms="all"), "synonyms='all': each, first, mean"),
        (dict(queries={"dog": "dog"}), "give a list of names"),
        (dict(queries={"dog": ["dog", ""]}), "give a list of names"),
    ],
)
def test_what_would_go_wrong_in_silence_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        ZeroShotSegmentation(**{"classes": ["cat", "dog"], **options})
