"""The task of detection: matching against all assignments, losses by hand, the best of all scores, boxes and back."""

import itertools
import math

import numpy as np
import pytest
import torch

from siglip2_dense.contracts import Geometry, RawDetections, Sample
from siglip2_dense.errors import UserError
from siglip2_dense.losses.detection import corners, matching_cost
from siglip2_dense.tasks import detection as module
from siglip2_dense.tasks.boxes import into_frame, onto_image
from siglip2_dense.tasks.detection import Detection, best_scores, match
from siglip2_dense.tasks.examples import query_of

SQUARE = Geometry(padded=(64, 64), box=(0, 0, 48, 64), canvas=(64, 64), resized=(48, 64), original=(96, 128))


def raw_of(count=6, queries=3, images=1, seed=0, width=4):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    return RawDetections(
        boxes=(draw(images, count, 4) / 2).sigmoid(),
        embeddings=draw(images, count, width),
        shift=draw(images, count) - 2,
        scale=draw(images, count).exp(),
        texts=tuple(torch.nn.functional.normalize(draw(queries, width), dim=-1) for _ in range(images)),
    )


@pytest.mark.parametrize(("tokens", "boxes"), [(6, 3), (4, 4), (3, 5), (5, 1), (4, 0)])
def test_the_matching_is_the_best_of_all(tokens, boxes):
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        image = (
            torch.randn(tokens, 2, generator=generator),
            torch.rand(tokens, 4, generator=generator),
            (torch.rand(boxes, 2, generator=generator) < 0.6).float(),
            torch.rand(boxes, 4, generator=generator),
        )
        cost = matching_cost(*image)
        ((rows, columns),) = match([image])
        assert len(set(rows.tolist())) == len(set(columns.tolist())) == len(rows) == min(tokens, boxes)
        few, many = sorted((tokens, boxes))
        table = cost if tokens <= boxes else cost.T
        least = min(
            sum(table[i, j].item() for i, j in enumerate(chosen)) for chosen in itertools.permutations(range(many), few)
        )
        assert cost[rows, columns].sum().item() == pytest.approx(least, abs=1e-5)


def test_images_of_a_batch_are_matched_apart():
    images = [(torch.randn(5, 2), torch.rand(5, 4), torch.ones(count, 2), torch.rand(count, 4)) for count in (3, 0, 2)]
    together = match(images)
    for one, (rows, columns) in zip(images, together, strict=True):
        ((alone, others),) = match([one])
        assert torch.equal(rows, alone) and torch.equal(columns, others)


def written_out(raw, number, sample, names, geometry):
    """Sums of one image's losses and what they are divided by, from the formulas, in NumPy."""
    z = raw.embeddings[number].numpy()
    z = z / (np.linalg.norm(z, axis=1, keepdims=True) + 1e-6)
    logits = (z @ raw.texts[number].numpy().T + raw.shift[number].numpy()[:, None]) * raw.scale[number].numpy()[:, None]
    targets = np.array([[float(name in own) for name in names] for own in sample.box_names]).reshape(-1, len(names))
    kept = targets.any(1)
    wanted = sample.boxes.numpy()[kept] / 64  # the frame of SQUARE
    targets = targets[kept]
    boxes = raw.boxes[number].numpy()
    found = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], axis=1)
    p = 1 / (1 + np.exp(-logits))
    positive, negative = -0.3 * (1 - p) ** 2 * np.log(p), -0.7 * p**2 * np.log(1 - p)

    def overlap(a, b):
        shared = np.prod(np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None))
        union = np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - shared
        around = np.prod(np.maximum(a[2:], b[2:]) - np.minimum(a[:2], b[:2]))
        return shared / union - (around - union) / around

    def middle(box):
        return np.concatenate([(box[:2] + box[2:]) / 2, box[2:] - box[:2]])

    cost = [
        [
            ((positive - negative)[n] * targets[m]).sum()
            + np.abs(boxes[n] - middle(wanted[m])).sum()
            - overlap(found[n], wanted[m])
            for m in range(len(wanted))
        ]
        for n in range(len(boxes))
    ]
    chosen = min(
        itertools.permutations(range(len(boxes)), len(wanted)),
        key=lambda rows: sum(cost[n][m] for m, n in enumerate(rows)),
    )
    labels = np.zeros_like(logits)
    for m, n in enumerate(chosen):
        labels[n] = targets[m]
    sums = [
        (labels * positive + (1 - labels) * negative).sum(),
        sum(np.abs(found[n] - wanted[m]).sum() for m, n in enumerate(chosen)),
        sum(1 - overlap(found[n], wanted[m]) for m, n in enumerate(chosen)),
    ]
    return np.array(sums), np.array([targets.sum(), len(wanted), len(wanted)])


def samples():
    boxes = [[[2.0, 3, 30, 40], [40, 5, 63, 20], [10, 10, 60, 45]], [], [[0, 0, 64, 48]]]
    names = [[("cat",), ("unknown",), ("dog", "animal")], [], [("dog",)]]
    return [
        Sample(boxes=torch.tensor(one).reshape(-1, 4), box_names=tuple(own), queries=("cat", "dog", "animal"), path="x")
        for one, own in zip(boxes, names, strict=True)
    ]


@pytest.mark.parametrize("each", [True, False])
def test_losses_are_those_written_out(each):
    raw, batch = raw_of(images=3), samples()
    task = Detection(["thing"])
    task.each = each
    found = task.loss(raw, [SQUARE] * 3, batch)
    rows = [written_out(raw, i, sample, sample.queries, SQUARE) for i, sample in enumerate(batch)]
    sums, counts = (np.stack(values) for values in zip(*rows, strict=True))
    assert counts.tolist() == [[3, 2, 2], [0, 0, 0], [1, 1, 1]]  # a box without a name that is asked for is none
    expected = (sums / np.maximum(counts, 1)).mean(0) if each else sums.sum(0) / counts.sum(0)
    assert [found[key].item() for key in ("loss_class", "loss_l1", "loss_giou")] == pytest.approx(expected, rel=2e-4)


def test_one_image_alone_is_the_same_either_way():
    raw, batch = raw_of(), samples()[:1]
    task = Detection(["thing"])
    together = task.loss(raw, [SQUARE], batch)
    task.each = True
    assert together == task.loss(raw, [SQUARE], batch)


@pytest.mark.parametrize("each", [True, False])
def test_a_step_without_any_box(each):
    """Its class losses are not divided by nothing."""
    raw, batch = raw_of(images=2), [samples()[1]] * 2
    task = Detection(["thing"])
    task.each = each
    found = task.loss(raw, [SQUARE] * 2, batch)
    sums = [written_out(raw, i, sample, sample.queries, SQUARE)[0][0] for i, sample in enumerate(batch)]
    expected = np.mean(sums) if each else np.sum(sums)
    assert found["loss_class"].item() == pytest.approx(expected, rel=2e-4)
    assert found["loss_l1"] == found["loss_giou"] == 0


def test_an_image_of_which_nothing_is_known_is_asked_for_nothing():
    unknown = Sample(boxes=torch.zeros(0, 4), queries=())
    task = Detection(["cat", "dog"])
    assert task.asked([unknown]) == [()]
    assert sum(task.loss(raw_of(queries=0), [SQUARE], [unknown]).values()) == 0


def test_an_image_is_asked_for_the_classes_where_its_sample_does_not_say():
    task = Detection(["cat", "dog"])
    given, silent = Sample(queries=("red box",)), Sample()
    assert task.asked([given, silent]) == [("red box",), ("cat", "dog")]
    bird = Sample(boxes=torch.ones(2, 4), box_names=(("cat",), ("bird", "robin")), path="a.jpg")
    with pytest.raises(UserError, match=r"a\.jpg: a box is called 'bird', which is none of the classes"):
        task.loss(raw_of(queries=2), [SQUARE], [bird])
    with pytest.raises(UserError, match=r"a\.jpg has no boxes"):
        task.loss(raw_of(queries=2), [SQUARE], [Sample(path="a.jpg")])


def test_padding_of_a_native_aspect_batch_is_neither_matched_nor_found():
    raw, batch = raw_of(count=8), samples()[:1]
    keep = torch.tensor([[True, True, False, True, True, False, True, True]])
    few = RawDetections(
        raw.boxes[:, keep[0]], raw.embeddings[:, keep[0]], raw.shift[:, keep[0]], raw.scale[:, keep[0]], raw.texts
    )
    raw.valid = keep
    task = Detection(["a", "b", "c"])
    assert task.loss(raw, [SQUARE], batch) == task.loss(few, [SQUARE], batch)
    found, expected = (task.predict([(one[0], SQUARE)]) for one in (raw, few))
    assert torch.equal(found.boxes, expected.boxes) and torch.equal(found.scores, expected.scores)
    assert len(found.scores) == 6 * 3


def test_each_box_is_that_of_the_token_that_was_scored():
    raw = raw_of(count=7, queries=3, seed=5)
    found = Detection(["a", "b", "c"]).predict([(raw, SQUARE)])
    probabilities, boxes = raw.logits().sigmoid(), corners(raw.boxes[0]) * 128  # twice the 64 of the frame
    expected = sorted(((float(probabilities[t, q]), t, q) for t in range(7) for q in range(3)), reverse=True)
    assert found.labels.tolist() == [q for *_, q in expected]
    assert torch.allclose(found.scores, torch.tensor([p for p, *_ in expected]))
    assert torch.allclose(found.boxes, boxes[[t for _, t, _ in expected]], atol=1e-4)


@pytest.mark.parametrize("at_once", [1, 7, 2**24])
def test_the_best_of_all_scores_are_found_in_parts(monkeypatch, at_once):
    raw = raw_of(count=7, queries=11, seed=4)
    monkeypatch.setattr(module, "SCORES_AT_ONCE", at_once)
    scores, tokens, labels = best_scores(raw, torch.arange(11), 11, most=20)
    whole = raw.logits().sigmoid()
    expected = whole.flatten().sort(descending=True).values[:20]
    assert torch.allclose(scores, expected) and torch.allclose(whole[tokens, labels], scores)
    assert len({*zip(tokens.tolist(), labels.tolist(), strict=True)}) == 20


@pytest.mark.parametrize("at_once", [1, 14, 2**24])
def test_of_several_names_of_a_class_the_best_counts(monkeypatch, at_once):
    raw = raw_of(count=7, queries=5, seed=4)
    monkeypatch.setattr(module, "SCORES_AT_ONCE", at_once)
    task = Detection(["a", "b", "c"], queries={"b": ["x", "y", "z"]})
    assert task.labels.tolist() == [0, 1, 1, 1, 2] and task.channels == 5
    scores, tokens, labels = best_scores(raw, task.labels, 3, most=300)
    logits = raw.logits()
    whole = torch.stack([logits[:, 0], logits[:, 1:4].amax(1), logits[:, 4]], dim=1).sigmoid()
    assert len(scores) == 21 and torch.allclose(whole[tokens, labels], scores)
    assert torch.allclose(scores, whole.flatten().sort(descending=True).values)


def test_the_mean_of_vectors_gives_the_mean_of_logits():
    raw, sentences = raw_of(), torch.nn.functional.normalize(torch.randn(5, 7, 4), dim=-1)
    task = Detection(list("abcde"))
    texts = task.texts(lambda names: sentences)
    raw.texts = (texts,)
    single = [
        RawDetections(raw.boxes, raw.embeddings, raw.shift, raw.scale, (sentences[:, i],)).logits() for i in range(7)
    ]
    assert torch.allclose(raw.logits(), torch.stack(single).mean(0), atol=1e-5)


@pytest.mark.parametrize(
    "geometry",
    [
        SQUARE,
        Geometry((64, 80), (7, 5, 50, 70), (50, 70), (50, 70), (500, 700)),  # centred on whole patches
        Geometry((96, 96), (0, 0, 64, 96), (96, 96), (61, 90), (122, 180), scaled=True),  # cells of its own
    ],
)
def test_boxes_go_into_the_frame_and_back(geometry):
    height, width = geometry.resized
    boxes = torch.tensor([[1.0, 2, 30, 40], [0, 0, width, height]])
    back = onto_image(into_frame(boxes, geometry), geometry)
    ratio = torch.tensor([geometry.original[1] / width, geometry.original[0] / height]).repeat(2)
    assert torch.allclose(back, boxes * ratio, atol=1e-3)


def test_a_frame_by_hand():
    box = into_frame(torch.tensor([[16.0, 16, 48, 48]]), SQUARE)
    assert box.tolist() == [[0.5, 0.5, 0.5, 0.5]]
    scaled = Geometry((64, 64), (0, 0, 32, 64), (64, 64), (50, 100), (50, 100), scaled=True)
    assert into_frame(torch.tensor([[25.0, 0, 75, 50]]), scaled).tolist() == [[0.5, 0.5, 0.5, 1.0]]
    # below the image there is grey: centre and height end with it
    assert onto_image(torch.tensor([[0.5, 0.9, 0.5, 1.0]]), SQUARE).tolist() == [[32, 48, 96, 144]]


def test_the_query_of_an_example_by_hand():
    boxes = torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.5, 0.5, 0.42, 0.4], [0.1, 0.1, 0.1, 0.1], [0.9, 0.9, 0.1, 0.1]])
    vectors = torch.tensor([[1.0, 0], [0, 1], [3, 0.1], [3, 0.1]])
    raw = RawDetections(boxes[None], vectors[None], torch.zeros(1, 4), torch.ones(1, 4), (torch.zeros(0, 2),))
    # both of the first overlap, and the second is less like the mean (1.75, 0.3)
    assert query_of(raw, torch.tensor([0.5, 0.5, 0.4, 0.4])).tolist() == [0, 1]
    assert query_of(raw, torch.tensor([0.1, 0.1, 0.1, 0.1])).tolist() == pytest.approx([3, 0.1])
    # near no box: by GIoU the last is the nearest
    assert query_of(raw, torch.tensor([0.99, 0.99, 0.01, 0.01])).tolist() == pytest.approx([3, 0.1])


def test_an_example_takes_pixels():
    raw = raw_of(count=9)
    place = corners(raw.boxes[0])[3] * 64
    found = Detection(["a"]).example(raw, SQUARE, place.tolist())
    assert torch.equal(found, query_of(raw, raw.boxes[0, 3]))


def test_a_picture_shows_what_is_there_and_what_was_found():
    task = Detection(["cat", "dog"])
    image = np.zeros((96, 128, 3), np.uint8)
    prediction = task.predict([(raw_of(queries=2), SQUARE)])
    sample = Sample(boxes=torch.tensor([[10.0, 10, 50, 60]]), box_names=(("cat",),))
    both, alone = task.draw(image, sample, prediction), task.draw(image, Sample(), prediction)
    assert both.ndim == alone.ndim == 3 and both.shape[1] > alone.shape[1] and both.any()


def test_settings():
    assert Detection(["a"]).meaning == Detection(["b", "c"]).meaning
    with pytest.raises(UserError, match="both called"):
        Detection(["a", "A"])
    with pytest.raises(UserError, match="is none of the classes"):
        Detection(["a"], queries={"b": ["x"]})
    assert math.isclose(Detection(["a"]).scoring["detections"], 300)
