import json

import pytest

from siglip2_dense.data import scenes
from siglip2_dense.errors import UserError
from siglip2_dense.label_sets import CLASSES, PALETTES, canonical, classes_of


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("ade20k", "ADE20KDataset"),
        ("pascal", "PascalVOCDataset"),
        ("pascal_context", "PascalContextDataset59"),
        ("coco_stuff", "COCOStuffDataset"),
    ],
)
def test_names_and_colours_are_those_of_mmsegmentation(name, theirs):
    import mmseg.datasets

    meta = getattr(mmseg.datasets, theirs).METAINFO
    assert CLASSES[name] == tuple(c.strip() for c in meta["classes"])  # mmsegmentation has "bed "
    assert PALETTES[name] == tuple(map(tuple, meta["palette"]))


def test_every_set_has_a_colour_for_each_class():
    counts = {"ade20k": 150, "pascal": 21, "voc20": 20, "pascal_context": 59, "coco_stuff": 171, "generated": 6}
    assert {name: len(classes) for name, classes in CLASSES.items()} == counts
    assert {name: len(colours) for name, colours in PALETTES.items()} == counts


def test_voc20_is_pascal_without_its_background():
    assert ("background", *CLASSES["voc20"]) == CLASSES["pascal"]
    assert ((0, 0, 0), *PALETTES["voc20"]) == PALETTES["pascal"]


def test_the_generated_set_agrees_with_its_scenes():
    assert CLASSES["generated"] == scenes.CLASSES
    assert list(PALETTES["generated"]) == list(scenes.PALETTE)


def test_classes_by_name_by_list_and_by_file(tmp_path):
    assert classes_of("pascal")[15] == "person"
    assert classes_of(["sky", "road"]) == ("sky", "road")
    plain, numbered = tmp_path / "plain.txt", tmp_path / "numbered.txt"
    plain.write_text("sky\nroad sign\n\n")
    numbered.write_text("0\tsky\n1\troad sign\n")
    assert classes_of(plain) == classes_of(str(numbered)) == ("sky", "road sign")


LISTS = {"ade150": "ade20k", "coco": "coco_stuff", "voc20": "voc20"}  # those of open-vocabulary work, and ours


@pytest.mark.parametrize("name", LISTS)
def test_lists_of_others_are_read_and_are_ours(test_data, name):
    found = classes_of(test_data / f"openvocab_classnames/{name}.json")
    assert found == CLASSES[LISTS[name]]  # one has "bed "


def test_long_lists_of_others_are_read(test_data):
    folder = test_data / "openvocab_classnames"
    assert [len(classes_of(folder / f"{name}.json")) for name in ("ade847", "pc459", "pc59", "voc20b")] == [
        847, 459, 59, 59,
    ]  # fmt: skip
    named = set(CLASSES["pascal_context"]) ^ set(classes_of(folder / "pc59.json"))
    assert named == {"table", "diningtable"} and set(classes_of(folder / "voc20b.json")) == set(
        classes_of(folder / "pc59.json")
    )


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["sky", "road", "Sky "], "the labels 0 and 2 are both called 'Sky'"),
        (["traffic light", "traffic  light"], "the labels 0 and 1 are both called"),
        (["sky", " "], "the name of label 1 is empty"),
        ("sky", "'sky' is not a list of names"),
        ({"0": "sky"}, "is not a list of names"),
        (["sky", 3], "is not a list of names"),
        ([], "is not a list of names"),
    ],
)
def test_names_that_are_none_or_the_same_are_refused(tmp_path, names, message):
    path = tmp_path / "names.json"
    path.write_text(json.dumps(names))
    with pytest.raises(UserError, match=rf"names\.json: .*{message}"):
        classes_of(path)
    if isinstance(names, list):
        with pytest.raises(UserError, match=rf"classes: .*{message}"):
            classes_of(names)
    if len(names) == 3 and isinstance(names, list):
        (tmp_path / "names.txt").write_text("\n".join(names))
        with pytest.raises(UserError, match=rf"names\.txt: {message}"):
            classes_of(tmp_path / "names.txt")


def test_a_broken_json_is_named(tmp_path):
    (tmp_path / "names.json").write_text('["sky", ')
    with pytest.raises(UserError, match=r"names\.json: cannot be read as JSON .* should be a list of names"):
        classes_of(tmp_path / "names.json")


def test_an_unknown_set_names_the_nearest():
    with pytest.raises(UserError, match=r"classes='ade2k' is neither a known set nor a file: did you mean 'ade20k'"):
        classes_of("ade2k")
    with pytest.raises(
        UserError,
        match=r"known sets are ade20k, coco_stuff, generated, pascal, pascal_context, voc20; else give a list",
    ):
        classes_of("zzz.txt")


@pytest.mark.parametrize("text", ["0\tsky\n2\troad\n", "0\tsky\nroad\n", "0\tsky\n1\t\n"])
def test_a_file_with_a_gap_is_named(tmp_path, text):
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(UserError, match=r"classes\.txt: expected label 1, a tab and its name.*list all"):
        classes_of(tmp_path / "classes.txt")


def test_no_names_at_all(tmp_path):
    (tmp_path / "classes.txt").write_text("\n")
    with pytest.raises(UserError, match=r"classes\.txt: holds no class names; write one a line"):
        classes_of(tmp_path / "classes.txt")
    with pytest.raises(UserError, match="is not a list of names"):
        classes_of([])
    with pytest.raises(UserError, match="is not a list of names"):
        classes_of([1, 2])


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("bow_(weapon)", "bow weapon"),
        ("A photo of a T--shirt.", "a photo of a t-shirt"),
        ("  Café au\tlait ", "caf au lait"),
        ("ice-cream", "ice-cream"),
        ("", ""),
        ("犬", ""),
    ],
)
def test_canonical_names(text, written):
    assert canonical(text) == written == canonical(written)
