"""Names as queries: prompts, drawn negatives, and rare names with their spellings."""

import collections
import json

import numpy as np
import pytest
from boxes_made import write_json

from siglip2_dense.data.boxes.names import Pool, RareNames, prompt, spellings, squashed, templates
from siglip2_dense.errors import UserError
from siglip2_dense.label_sets import canonical


def test_prompts_are_the_bare_name_or_one_of_eighty_sentences():
    rng = np.random.default_rng(0)
    drawn = collections.Counter(prompt("t-shirt", rng) for _ in range(8100))
    assert len(templates()) == len(set(templates())) == 81
    assert set(drawn) == {canonical(template.replace("{}", "t-shirt")) for template in templates()}
    assert "a photo of a t-shirt" in drawn and "t-shirt" in drawn and "itap of my t-shirt" in drawn
    assert min(drawn.values()) > 60 and max(drawn.values()) < 150  # 100 of each on the average


def test_negatives_are_drawn_in_proportion_to_how_often_they_occur():
    pool, rng = Pool({"often": 8.0, "now and then": 2.0, "rarely": 0.5, "here": 100.0}), np.random.default_rng(0)
    drawn = collections.Counter(name for _ in range(4000) for name in pool.draw(1, {"here"}, rng))
    share = [drawn[name] / 4000 for name in ("often", "now and then", "rarely")]
    assert np.allclose(share, np.array([8, 2, 0.5]) / 10.5, atol=0.025) and set(drawn) == set(pool.names) - {"here"}
    for _ in range(50):
        assert sorted(pool.draw(2, {"here", "elsewhere"}, rng)) != sorted(pool.draw(9, {"here"}, rng))
        assert sorted(pool.draw(9, {"here"}, rng)) == ["now and then", "often", "rarely"]
    assert pool.draw(0, set(), rng) == pool.draw(-3, set(), rng) == Pool({}).draw(5, set(), rng) == []


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("ice-cream cone", ["ice cream cones", "icecream cone", "Ice_cream_cone"]),
        ("wolf", ["wolves"]),
        ("knife", ["knives"]),
        ("cherry", ["cherries"]),
        ("watch", ["watches"]),
        ("milkman", ["milkmen"]),
        ("tongs", ["tong"]),
        ("puppies", ["puppy"]),
        ("scarves", ["scarf"]),
    ],
)
def test_spellings_of_a_name(name, others):
    forms = spellings(name)
    assert squashed(name) in forms and "" not in forms
    for other in others:
        assert squashed(other) in forms
    assert squashed("rain coat") not in forms


def _categories(*rows):
    return {"categories": [{"name": n, "frequency": f, "synonyms": list(s)} for n, f, *s in rows]}


def test_what_is_rare_by_rule(tmp_path):
    content = _categories(
        ("bow_(weapon)", "r", "bow_(weapon)", "longbow"),
        ("shears", "r", "shears", "clipper"),
        ("garbage", "r", "garbage"),
        ("first-aid_kit", "r", "first-aid_kit"),
        ("glove", "f", "glove", "shears"),  # a rare one's own name is rare whatever else is called so
        ("ship", "c", "ship", "clippers"),  # several clippers are ships
        ("trash_can", "f", "trash_can", "garbage_can"),
        ("cat", "f", "cat"),
    )
    rare = RareNames(write_json(tmp_path / "lvis.json", content))
    spelt = ["bow weapon", "Bow_(weapon)", "long-bows", "Shears", "shear", "clipper", "first aid kits", "garbage"]
    phrases = ["metal shears", "clipper in a hand", "garbage heap", "red first aid-kit", "garbage by a garbage can"]
    assert all(name in rare for name in spelt + phrases)
    others = [
        "bow",
        "cat",
        "cats",
        "gloves",
        "clippers",
        "ship",
        "garbage can",
        "white garbage can",
        "garbages can",
        "",
    ]
    assert [name for name in others if name in rare] == ["garbages can"]
    assert not any(name in rare for name in ["shearling", "egg bag", "kit", "first aid"])


def test_other_annotations_are_refused(tmp_path):
    with pytest.raises(UserError, match="none of its categories is rare"):
        RareNames(write_json(tmp_path / "a.json", _categories(("cat", "f", "cat"))))
    with pytest.raises(UserError, match="KeyError: 'frequency'"):
        RareNames(write_json(tmp_path / "a.json", {"categories": [{"id": 1, "name": "cat"}]}))


def test_the_rule_on_real_annotations(real):
    path = real("lvis/lvis_val_100.json")
    categories = json.loads(path.read_text())["categories"]
    rare = RareNames(path)
    assert all(one["name"] in rare for one in categories if one["frequency"] == "r")
    own = {squashed(one["name"]) for one in categories if one["frequency"] == "r"}
    others = [one["name"] for one in categories if one["frequency"] != "r" and squashed(one["name"]) not in own]
    wrong = [name for name in others if name in rare]
    assert len(own) <= 454 < len(rare.spellings) and len(others) > 770 and not wrong
