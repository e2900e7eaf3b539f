"""The task of a head for any class names: queries, loss and the blending of views, against plain computations."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from siglip2_dense.contracts import IGNORE, Geometry, Sample
from siglip2_dense.errors import UserError
from siglip2_dense.registry import TASKS, build
from siglip2_dense.tasks.open_vocabulary import OpenVocabulary, blend_probabilities


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def whole(size, original=None):
    return Geometry(size, (0, 0, *size), size, size, original or size)


def test_a_class_is_asked_for_by_its_first_name():
    task = OpenVocabulary(["bag", "building, edifice", "wall-brick", " bed , cot"])
    assert task.members == (("bag",), ("building",), ("wall-brick",), ("bed",)) and task.channels == 4


def test_what_a_raw_map_means_does_not_depend_on_the_names_but_its_score_does():
    one, other = OpenVocabulary(["a", "b, c"], synonyms="each"), OpenVocabulary(["x"])
    assert one.meaning == other.meaning
    assert one.scoring["queries"] == {"a": ["a"], "b, c": ["b", "c"]} and one.scoring["templates"] == "scene"
    assert one.scoring != other.scoring and one.metric().num_classes == 2


@pytest.mark.parametrize("ignored", ["negative", "masked"])
def test_loss_is_the_mean_of_binary_cross_entropies_of_each_pixel_and_class(ignored):
    task, size = OpenVocabulary(["a", "b", "c"], ignored=ignored), (15, 21)
    raw = torch.randn(2, 3, 5, 7, requires_grad=True)
    labels = torch.randint(-1, 3, (2, 11, 20))
    place = Geometry(size, (2, 1, 11, 20), size, (11, 20), (11, 20))
    found = task.loss(raw, (place,) * 2, [Sample(labels=one, path="x") for one in labels])["loss_bce"]
    canvas = torch.full((2, *size), IGNORE)
    canvas[:, 2:13, 1:21] = labels
    scores = F.interpolate(raw, size, mode="bilinear", align_corners=False)
    target = F.one_hot(canvas.clamp(min=0), 3).movedim(-1, 1) * (canvas != IGNORE)[:, None]
    terms = F.binary_cross_entropy_with_logits(scores, target.float(), reduction="none")
    expected = terms.mean() if ignored == "negative" else terms.movedim(1, -1)[canvas != IGNORE].mean()
    assert torch.allclose(found, expected, rtol=1e-5)
    a, b = (torch.autograd.grad(loss, raw, retain_graph=True)[0] for loss in (found, expected))
    assert torch.allclose(a, b, atol=1e-8)


def test_labels_beyond_the_vocabulary_are_refused_with_the_name_of_the_image():
    task, labels = OpenVocabulary(["a", "b"]), torch.tensor([[0, 1], [2, -1]])
    with pytest.raises(UserError, match=r"b\.png: holds the label 2, but the vocabulary has 2 classes"):
        samples = [Sample(labels=labels.clamp(max=1), path="a.png"), Sample(labels=labels, path="b.png")]
        task.loss(torch.zeros(2, 2, 1, 1), (whole((2, 2)),) * 2, samples)
    with pytest.raises(UserError, match="2 queries for 1 classes"):
        OpenVocabulary(["a, b"], synonyms="each").loss(torch.zeros(1, 2, 1, 1), (whole((2, 2)),), [])
    with pytest.raises(UserError, match="2 queries for 2 classes: to train, each class has one"):
        asked = {"background": [], "a": ["b", "c"]}
        OpenVocabulary(["background", "a"], asked, 0.5).loss(torch.zeros(1, 2, 1, 1), (whole((2, 2)),), [])


def published_blend(windows, overview, original, size=(64, 64), kernel=40, stride=24):
    """CAT-Seg's: sigmoids of windows folded and divided by their count, averaged with those of the overview."""
    unfold, fold = nn.Unfold(kernel, stride=stride), nn.Fold(size, kernel, stride=stride)
    windows, overview = (
        F.interpolate(x, (kernel, kernel), mode="bilinear", align_corners=False).sigmoid() for x in (windows, overview)
    )
    folded = fold(windows.flatten(1).T[None]) / fold(unfold(torch.ones(1, 1, *size)))
    both = (folded + F.interpolate(overview, size, mode="bilinear", align_corners=False)) / 2
    return F.interpolate(both, original, mode="bilinear", align_corners=False)[0]


def test_views_blend_as_published():
    raw = torch.randn(5, 7, 10, 10)
    places = [Geometry((40, 40), (0, 0, 40, 40), (40, 40), (64, 64), (50, 90), window) for window in
              [(top, left, 40, 40) for top in (0, 24) for left in (0, 24)] + [(0, 0, 64, 64)]]  # fmt: skip
    found = blend_probabilities(list(zip(raw, places, strict=True)))
    expected = published_blend(raw[:4], raw[4:], (50, 90))
    assert found.shape == (7, 50, 90) and torch.allclose(found, expected, atol=1e-6)
    turned = blend_probabilities(list(zip(raw, places, strict=True))[::-1])
    assert torch.allclose(turned, expected, atol=1e-6)


def test_padding_of_a_view_is_cut_off():
    raw, place = torch.randn(1, 4, 6), Geometry((16, 24), (1, 2, 13, 20), (16, 24), (13, 20), (13, 20))
    expected = F.interpolate(raw[None], (16, 24), mode="bilinear", align_corners=False).sigmoid()[0, :, 1:14, 2:22]
    assert torch.allclose(blend_probabilities([(raw, place)]), expected, atol=1e-6)


def test_the_class_of_the_best_query_wins_and_of_equal_ones_the_first():
    """40 queries are more than are looked at together."""
    classes = [f"class {i}" for i in range(20)]
    task = OpenVocabulary(classes, queries={"class 3": [f"query {i}" for i in range(21)]})
    raw = torch.randn(task.channels, 6, 8)
    raw[30] = raw[20] = raw[2]
    found = task.predict([(raw, whole((12, 16)))])
    scores = F.interpolate(raw[None], (12, 16), mode="bilinear", align_corners=False)[0]
    best = scores.argmax(0)
    assert torch.equal(found, task.labels[best]) and {20, 30} - set(best.unique().tolist()) == {20, 30}
    assert len(found.unique()) > 5


def test_pixels_whose_best_query_is_below_the_threshold_are_background():
    """Asked for by name or not; 20 queries are more than are looked at together."""
    names = [f"class {i}" for i in range(19)]
    raw = torch.randn(20, 6, 8) - 1
    probs = F.interpolate(raw[None], (12, 16), mode="bilinear", align_corners=False)[0].sigmoid()
    threshold = probs.amax(0).median().item()
    asked = OpenVocabulary(["background", *names], background_threshold=threshold)
    found = asked.predict([(raw, whole((12, 16)))])
    assert torch.equal(found, probs.argmax(0).where(probs.amax(0) >= threshold, 0)) and (found == 0).sum() > 90
    unasked = OpenVocabulary(["background", *names], {"background": []}, threshold)
    assert unasked.channels == 19 and unasked.scoring["background_threshold"] == threshold
    probs = probs[1:]
    expected = (probs.argmax(0) + 1).where(probs.amax(0) >= threshold, 0)
    assert torch.equal(unasked.predict([(raw[1:], whole((12, 16)))]), expected)
    assert not OpenVocabulary(["background", "a"], {"background": []}, 0.9).predict([(raw[:1], whole((2, 2)))]).any()


def test_equal_classes_never_win_over_the_first_of_them():
    task = OpenVocabulary([f"class {i}" for i in range(40)])
    found = task.predict([(torch.randn(1, 5, 5).expand(40, -1, -1), whole((10, 10)))])
    assert not found.any()
    assert not build(TASKS, dict(type="OpenVocabulary", classes=["one"])).predict(
        [(torch.randn(1, 5, 5), whole((10, 10)))]
    ).any()  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (dict(classes=["a", "b", "a"]), r"labels 0 and 2 are both called 'a'"),
        (dict(classes=["a", "  "]), "the name of label 1 is empty"),
        (dict(classes=[]), "give one name for each label"),
        (dict(classes=["a"], ignored="positive"), "ignored='positive'"),
        (dict(classes=["a"], queries={"b": ["c"]}), "'b' is none of the classes"),
        (dict(classes=["a"], queries={"a": []}), "give a list of names"),
        (dict(classes=["a", "background"], background_threshold=0.5), "class 0 is not 'background'"),
        (dict(classes=["background"], background_threshold=1), "give a probability between 0 and 1"),
    ],
)
def test_names_that_are_none_are_refused(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        OpenVocabulary(**settings)
