"""Class names to sentences: named sets of templates, and how names are written in them."""

from __future__ import annotations

from collections.abc import Sequence

from siglip2_dense.errors import UserError, nearest
from siglip2_dense.label_sets import canonical

SETS = {
    "single": "CLIP's own default, 'a photo of a {}.'",
    "name": "the bare name",
    "scene": "CAT-Seg's one template",
    "7-best": "the seven that OpenAI chose for ImageNet (open_clip's SIMPLE_IMAGENET_TEMPLATES)",
    "80": "OpenAI's eighty for ImageNet (open_clip's OPENAI_IMAGENET_TEMPLATES)",
}
NAME_CLEANING = "hyphens and underscores are blanks, blanks are folded"


def templates_of(which: str | Sequence[str]) -> tuple[str, ...]:
    """The templates of a named set, or those given, each with ``{}`` where the name goes.

    Sources: Radford et al. 2021, section 3.1.4, for "single"; Cho et al. 2024 (CAT-Seg) for "scene". Raises UserError
    for an unknown set, an empty list, and a template without ``{}``.
    """
    which = str(which) if isinstance(which, int) else which  # on a command line "80" is a number
    if isinstance(which, str):
        if which not in SETS:
            raise UserError(
                f"templates={which!r}: give a list of sentences with {{}}, or a set: {nearest(which, SETS)} "
                f"There are {', '.join(SETS)}."
            )
        short = {"single": "a photo of a {}.", "name": "{}", "scene": "A photo of a {} in the scene"}
        return (short[which],) if which in short else _of_open_clip(which)
    if not isinstance(which, Sequence):
        raise UserError(f"templates={which!r}: give a list of sentences with {{}}, or a set: {', '.join(SETS)}.")
    templates = tuple(which)
    if not templates:
        raise UserError("templates: the list is empty; give at least '{}', the bare name.")
    for template in templates:
        if not isinstance(template, str) or "{}" not in template:
            raise UserError(f"templates: {template!r} has no {{}} where the class name goes.")
    return templates


def _of_open_clip(which: str) -> tuple[str, ...]:
    """open_clip has functions of a name; called with ``{}`` they give templates."""
    import open_clip

    functions = {"7-best": open_clip.SIMPLE_IMAGENET_TEMPLATES, "80": open_clip.OPENAI_IMAGENET_TEMPLATES}[which]
    return tuple(function("{}") for function in functions)


def clean_name(name: str) -> str:
    """A class name as it stands in a sentence: "wall-brick" and "wall_brick" are "wall brick"."""
    return " ".join(name.replace("-", " ").replace("_", " ").split())


def fill(class_names: Sequence[str], templates: Sequence[str], clean: bool | str = True) -> list[str]:
    """K P sentences, all of the first name first.

    clean: write names as ``clean_name`` does; false, as they are; "canonical", the whole sentences as ``canonical``
    does. Raises UserError where there are no names, or one is empty.
    """
    if isinstance(class_names, str):
        raise UserError(f"class_names={class_names!r}: give a list of names.")
    if not len(class_names):
        raise UserError("class_names: the list is empty; give at least one name.")
    written = canonical if clean == "canonical" else clean_name
    cleaned = [written(name) if isinstance(name, str) else "" for name in class_names]
    if "" in cleaned:
        place = cleaned.index("")
        letters = ", written in a to z and 0 to 9" if clean == "canonical" else ""
        raise UserError(
            f"class_names: entry {place} is {class_names[place]!r}, which names nothing{letters}; take it out."
        )
    names = cleaned if clean is True else class_names
    sentences = [template.replace("{}", name) for name in names for template in templates]
    return [canonical(sentence) for sentence in sentences] if clean == "canonical" else sentences
