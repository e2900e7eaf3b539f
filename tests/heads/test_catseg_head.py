"""CAT-Seg's head against a plain implementation of its description, and what must not matter to its scores."""

from dataclasses import replace

import catseg_reference as reference
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from siglip2_dense.contracts import Alignment, EncoderFacts, Features, Geometry
from siglip2_dense.convert.catseg import named
from siglip2_dense.errors import UserError
from siglip2_dense.heads.catseg import CATSegHead
from siglip2_dense.heads.catseg import head as module
from siglip2_dense.heads.catseg.classes import ClassPart
from siglip2_dense.heads.catseg.decoder import UpBlock
from siglip2_dense.heads.catseg.spatial import WindowBlock, cuts, window_attention

E, W = 8, 12  # of the text space and of the encoder's blocks
FACTS = EncoderFacts(
    name="some", fingerprint="", widths=(W,) * 6, strides=(16,) * 6, prefix=("class",), pooled="class", pooled_width=W,
    final_norm=True, mean=(0, 0, 0), std=(1, 1, 1), native_grid=(14, 14), position_kernel="bicubic", parameters=0,
    aligned_width=E,
)  # fmt: skip


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def built(facts=FACTS, **settings):
    """A head all of whose parameters are at random, so that none can be left out unnoticed."""
    head = CATSegHead(facts, channels=0, **settings).eval()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return head


def features(images=1, grid=(4, 6), facts=FACTS, dtype=torch.float32):
    size = tuple(16 * side for side in grid)
    place = Geometry(size, (0, 0, *size), size, size, size)
    maps = {tap: torch.randn(images, W, *grid, dtype=dtype) for tap in module.guides_of(facts)}
    return Features(maps, (place,) * images, aligned=torch.randn(images, facts.aligned_width, *grid, dtype=dtype))


def texts(classes, prompts=1, dtype=torch.float32):
    return F.normalize(torch.randn(classes, prompts, E, dtype=dtype), dim=-1)


@torch.no_grad()
def scores(head, seen, text, most=None):
    head.text, head.most = text, most
    return head(seen)


def expected(head, seen, text, pool=1):
    """The plain implementation, image by image."""
    published = {named(key): value for key, value in head.state_dict().items()}
    return torch.stack(
        [
            reference.logits(published, cells, text, [seen.maps[tap][number] for tap in head.guides], pool)
            for number, cells in enumerate(seen.aligned)
        ]
    )


@pytest.mark.parametrize("grid", [(24, 24), (4, 6), (13, 25), (12, 30), (1, 1)])
@pytest.mark.parametrize("shifted", [False, True])
def test_windows_are_masks_on_attention_over_all_cells(grid, shifted):
    q, k, v = torch.randn(3, 2, *grid, 16, dtype=torch.float64)
    found = window_attention(q, k, v, shifted)
    heads = [x.flatten(1, 2).unflatten(-1, (4, 4)).transpose(1, 2) for x in (q, k, v)]
    weights = heads[0] @ heads[1].mT / 2
    weights = weights.masked_fill(~reference.same_window(*grid, shifted), -torch.inf).softmax(-1)
    assert torch.allclose(found.flatten(1, 2), (weights @ heads[2]).transpose(1, 2).flatten(2), atol=1e-12)


def test_windows_cover_an_axis_once():
    for side in (1, 11, 12, 13, 24, 25, 31, 36, 60):
        for shifted in (False, True):
            cells = [cell for window in cuts(side, shifted) for cell in range(side)[window]]
            assert cells == list(range(side)) and all(w.stop - w.start <= 12 for w in cuts(side, shifted))
    assert cuts(24, False) == [slice(0, 12), slice(12, 24)]
    assert cuts(24, True) == [slice(0, 6), slice(6, 18), slice(18, 24)]


def test_cosines_can_be_added_to_the_scores():
    head, seen, text = built(prompts=3, direct=True), features(2), texts(20, 3)
    plain = CATSegHead(FACTS, channels=0, prompts=3).eval()
    assert set(head.state_dict()) - set(plain.state_dict()) == {"scale"}
    plain.load_state_dict({key: value for key, value in head.state_dict().items() if key != "scale"})
    cosines = torch.einsum("behw,tpe->btphw", F.normalize(seen.aligned, dim=1), text).mean(2)
    added = head.scale * F.interpolate(cosines, (16, 24), mode="bilinear", align_corners=False)
    assert torch.allclose(scores(head, seen, text), scores(plain, seen, text) + added, atol=1e-5)


@pytest.mark.parametrize(("classes", "prompts", "grid"), [(1, 1, (4, 6)), (5, 3, (13, 7)), (300, 1, (2, 2))])
def test_scores_equal_the_plain_implementation(classes, prompts, grid):
    head, seen, text = built(prompts=prompts), features(2, grid), texts(classes, prompts)
    found = scores(head, seen, text)
    assert found.shape == (2, classes, 4 * grid[0], 4 * grid[1]) and found.std() > 0.05
    assert (found - expected(head, seen, text)).abs().max() < 2e-5


def test_training_pools_the_cells_between_classes():
    head, seen, text = built(blocks=3).train(), features(2), texts(5)
    head.text = text
    assert (head(seen) - expected(head, seen, text, pool=2)).abs().max() < 2e-5
    assert (scores(head.eval(), seen, text) - expected(head, seen, text)).abs().max() < 2e-5


def test_an_odd_grid_is_pooled_without_loss():
    part = ClassPart(8, pool=2).train()
    x = torch.arange(3.0).view(1, 1, 3, 1, 1).expand(1, 2, 3, 5, 8)
    pooled = part._pooled(x)
    assert pooled.shape == (1, 2, 2, 3, 8) and pooled[0, 0, :, 0, 0].tolist() == [0.5, 2.0]


def test_gradients_by_finite_differences():
    block = WindowBlock(8, shifted=True).double()
    x, guidance = torch.randn(1, 2, 2, 13, 8).double(), torch.randn(1, 2, 13, 8).double()
    check = torch.autograd.gradcheck
    assert check(block, (x.requires_grad_(), guidance.requires_grad_()), fast_mode=True)
    part = ClassPart(8, pool=2).double().train()
    torch.nn.init.normal_(part.filler), torch.nn.init.normal_(part.filler_guidance)

    def between(x, words, filler):
        part.filler.data.copy_(filler)
        return part(x, words, part.fill(len(words)) + part.sums(x, words))

    x, words = torch.randn(1, 3, 2, 4, 8).double().requires_grad_(), torch.randn(3, 8).double().requires_grad_()
    assert check(lambda x, words: between(x, words, part.filler.data), (x, words), fast_mode=True)
    assert check(UpBlock(32, 16, 32).double(), (torch.randn(4, 32, 2, 3).double().requires_grad_(),
                 torch.randn(2, 16, 4, 6).double().requires_grad_()), fast_mode=True)  # fmt: skip


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_equal_those_of_the_plain_implementation(checkpointing):
    """Of what comes in and of every parameter, in double precision."""
    head = built(checkpointing=checkpointing).double().train()
    seen, text = features(1, (2, 4), dtype=torch.float64), texts(20, dtype=torch.float64).requires_grad_()
    inputs = [text, seen.aligned.requires_grad_(), *head.parameters()]
    weights = torch.randn(1, 20, 8, 16).double()
    head.text = F.normalize(text, dim=-1)
    ours = torch.autograd.grad((head(seen) * weights).sum(), inputs)
    published = {named(key): value for key, value in head.named_parameters()}
    middle = [seen.maps[tap][0] for tap in head.guides]
    plain = reference.logits(published, seen.aligned[0], F.normalize(text, dim=-1), middle, pool=2)
    names = ["text", "cells", *(name for name, _ in head.named_parameters())]
    plain = torch.autograd.grad((plain * weights[0]).sum(), inputs)
    for name, a, b in zip(names, ours, plain, strict=True):
        assert torch.allclose(a, b, rtol=1e-7, atol=1e-9), name
        moves = "spatial" not in name or not name.endswith("k.bias")  # which a softmax does not see
        assert (b.abs().max() > 1e-6) == moves, name


def test_checkpointing_runs_the_parts_again():
    for checkpointing, runs in ((False, 2), (True, 4)):  # 20 classes of one image are two parts
        head, seen, count = built(checkpointing=checkpointing).train(), features(), []
        head.text = texts(20)
        head.decoder.up1.register_forward_hook(lambda *_, count=count: count.append(1))
        head(seen).sum().backward()
        assert len(count) == runs


@pytest.mark.parametrize("classes", [20, 600])
def test_neither_the_order_of_the_classes_nor_the_parts_matter(classes, monkeypatch):
    head, seen, text = built(), features(2, (2, 3)), texts(classes)
    found = scores(head, seen, text)
    order = torch.randperm(classes)
    assert (scores(head, seen, text[order]) - found[:, order]).abs().max() < 1e-5
    for at_once in (2, 7, 5000):
        monkeypatch.setattr(module, "MAPS_AT_ONCE", {"cpu": at_once})
        assert (scores(head, seen, text) - found).abs().max() < 1e-5
    monkeypatch.setattr(module, "VOLUMES_AT_ONCE", 1)
    assert (scores(head, seen, text) - found).abs().max() < 1e-5
    alone = torch.cat([scores(head, seen[i : i + 1], text) for i in (0, 1)])
    assert (alone - found).abs().max() < 1e-5


@pytest.mark.parametrize("most", [None, 256])
def test_equal_texts_have_equal_scores(most):
    head, seen, text = built(), features(2, (2, 3)), texts(300)
    found = scores(head, seen, torch.cat([text, text])[:400], most)
    if most is None:
        assert torch.equal(found[:, :100], found[:, 300:])
    else:  # of equal ones at the edge of the chosen the first is in
        both = (found[:, :100] > -100) & (found[:, 300:] > -100)
        assert both.any() and torch.equal(found[:, :100][both], found[:, 300:][both])
        assert not ((found[:, 300:] > -100) & (found[:, :100] == -100)).any()


def test_of_an_image_the_nearest_256_are_scored_as_if_alone():
    head, seen, text = built(), features(2, (2, 3)), texts(300)
    found = scores(head, seen, text, most=256)
    for number, cells in enumerate(F.normalize(seen.aligned, dim=1)):
        highest = torch.einsum("ehw,te->thw", cells, text[:, 0]).flatten(1).amax(1)
        chosen = highest >= highest.sort(descending=True).values[255]
        assert chosen.sum() == 256 and (found[number, ~chosen] == -100).all()
        alone = scores(head, seen[number : number + 1], text[chosen])[0]
        assert (found[number, chosen] - alone).abs().max() < 1e-5
    few = text[:256]
    assert torch.equal(scores(head, seen, few, most=256), scores(head, seen, few))
    everything = scores(head, seen, text)
    assert (everything[found > -100] - found[found > -100]).abs().max() > 1e-4  # the others count between classes


class Largest(TorchDispatchMode):
    """Notes the largest tensor that is made."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return made


def test_five_thousand_classes_take_no_more_at_a_time_than_a_few():
    head, seen, text = built(), features(1, (3, 3)), texts(5000)
    with Largest() as largest:
        found = scores(head, seen, text)
    assert found.shape == (1, 5000, 12, 12) and found.isfinite().all()
    part = 16 * 64 * 12 * 12  # classes of a part, channels and cells of the decoder's last step
    assert largest.numel <= max(found.numel(), part)


def test_filler_has_a_gradient_of_zero_where_there_is_none():
    """None would stop training on several GPUs."""
    for classes, there in ((255, True), (256, False), (300, False)):
        head = built().train()
        head.text = texts(classes)
        head(features(1, (2, 2))).square().sum().backward()
        assert (head.layers[1].classes.filler.grad.abs().max() > 0) == there
        assert all(parameter.grad is not None for parameter in head.parameters())


def test_half_precision_is_near_and_sums_are_not_in_it():
    head, seen, text = built(), features(2), texts(40)
    exact = scores(head, seen, text)
    with torch.autocast("cpu", torch.bfloat16):
        found = scores(head, seen, text)
        added = head.layers[0].classes.sums(torch.randn(1, 2, 2, 2, 128), torch.randn(2, 128))
    assert found.dtype == added.dtype == torch.float32
    assert 0 < (found - exact).abs().max() < 0.1 * exact.abs().max()


def test_parameters_are_as_many_as_published():
    for width, text, count in ((768, 512, 2_308_961 + 2_359_680), (1024, 768, 2_636_641 + 3_146_112)):
        facts = replace(FACTS, widths=(width,) * 12, aligned_width=text)
        assert sum(p.numel() for p in CATSegHead(facts, 0).parameters()) == count


@pytest.mark.parametrize(("blocks", "ends"), [(12, (3, 7)), (24, (7, 15)), (27, (8, 17)), (40, (12, 26)), (1, (0, 0)),
                                              (32, (10, 20)), (48, (15, 31)), (2, (0, 0)), (3, (0, 1))])  # fmt: skip
def test_guidance_ends_the_thirds_of_the_encoder(blocks, ends):
    facts = replace(FACTS, widths=(W,) * blocks, strides=(14,) * blocks)
    assert tuple(tap.block for tap in module.guides_of(facts)) == ends
    assert not any(tap.norm for tap in CATSegHead(facts, 0).taps)


def test_maps_in_the_text_space_are_made_as_the_encoder_can():
    how = {}
    for name, changes in dict(clip={}, siglip=dict(pooled="map", prefix=()), mean=dict(prefix=())).items():
        how[name] = [CATSegHead(replace(FACTS, **changes), 0, residual=r).aligned for r in ("class", "own")]
    assert how["clip"] == [Alignment("value", "class", True), Alignment("value", "own", True)]
    assert how["siglip"] == [Alignment("value")] * 2
    assert how["mean"] == [Alignment("value", "own", True)] * 2


@pytest.mark.parametrize(
    ("facts", "settings", "sentence"),
    [
        (dict(sequence_length=256), {}, "fixed-resolution encoder"),
        (dict(aligned_width=None), {}, "no text space"),
        ({}, dict(grid=0), "grid=0"),
        ({}, dict(grid=(24,)), r"grid=\(24,\)"),
        ({}, dict(grid=True), "grid=True"),
        ({}, dict(grid=24.0), "grid=24.0"),
        ({}, dict(blocks=0), "blocks=0"),
        ({}, dict(prompts=True), "prompts=True"),
        ({}, dict(residual="cls"), "residual='cls'"),
    ],
)
def test_what_cannot_be_is_refused(facts, settings, sentence):
    with pytest.raises(UserError, match=sentence):
        CATSegHead(replace(FACTS, **facts), 0, **settings)


def test_without_texts_it_says_whose_head_it_is():
    with pytest.raises(UserError, match="it is a head of the model CATSeg"):
        built()(features())


def test_prompts_are_as_many_as_the_head_was_built_for():
    with pytest.raises(UserError, match=r"3 prompts, the head was built for 1"):
        scores(built(), features(), texts(2, prompts=3))
