"""Names as queries in training: sentences around them, names of what is not there, and those to stay unseen."""

from __future__ import annotations

from collections.abc import Mapping, Set
from functools import cache
from pathlib import Path

import numpy as np

from siglip2_dense.data.boxes.annotations import format_is_named, read_json
from siglip2_dense.errors import UserError
from siglip2_dense.label_sets import canonical

ENDINGS = (  # of one and of several
    ("", "s"), ("", "es"), ("y", "ies"), ("f", "ves"), ("fe", "ves"), ("man", "men"), ("child", "children"),
)  # fmt: skip


@cache
def templates() -> tuple[str, ...]:
    """The bare name and OpenAI's eighty sentences, each with ``{}`` where the name goes."""
    import open_clip

    return "{}", *(template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES)


def prompt(name: str, rng: np.random.Generator) -> str:
    """A canonical name in a sentence that is drawn, written as ``canonical`` does, so without its full stop."""
    drawn = templates()[int(rng.integers(len(templates())))]
    return canonical(drawn.replace("{}", name))


class Pool:
    """Names to ask for in vain, drawn in proportion to how often they occur.

    frequencies: of each name, above 0.
    """

    def __init__(self, frequencies: Mapping[str, float]):
        self.names = list(frequencies)
        self._frequencies = np.array(list(frequencies.values()), dtype=np.float64)

    def draw(self, count: int, without: Set[str], rng: np.random.Generator) -> list[str]:
        """``count`` different names that are not in ``without``, or as many as there are."""
        if not self.names or count < 1:
            return []
        arrivals = rng.exponential(size=len(self.names)) / self._frequencies  # whoever comes first is drawn
        some = min(count + len(without), len(self.names))
        first = np.argpartition(arrivals, some - 1)[:some]
        drawn = (self.names[place] for place in first[np.argsort(arrivals[first])])
        return [name for name in drawn if name not in without][:count]


class RareNames:
    """Names that LVIS's rare categories go by, by the frequencies of its annotations: ``name in rare``.

    They are the categories' own names and, of these and of their synonyms, one and several of each, however the words
    are joined; and phrases with one of them in it, "black leather". But what another category is called, or has as a
    synonym, stands for that one, alone and in a phrase ("garbage can"), unless it is a rare one's own name. Of the 275
    labels that OWL-ViT's authors chose by hand beside LVIS's names, 250 are found without any synonyms; some that they
    allow are found too, such as "leather couch".

    path: of annotations of LVIS. Raises UserError for a file that is not LVIS's.
    """

    def __init__(self, path: str | Path):
        path = Path(path)
        with format_is_named(path):
            categories = read_json(path)["categories"]
            called = [(one["frequency"] == "r", one["name"], {one["name"], *one["synonyms"]}) for one in categories]
        own = {squashed(name) for is_rare, name, _ in called if is_rare}
        if not own:
            raise UserError(f"{path}: none of its categories is rare (frequency r); give the annotations of LVIS.")
        derived = {form for is_rare, _, names in called if is_rare for name in names for form in spellings(name)}
        self.others = {squashed(name) for is_rare, _, names in called if not is_rare for name in names}
        self.spellings = own | (derived - self.others)

    def __contains__(self, name: str) -> bool:
        words = canonical(name).replace("-", " ").split()
        runs = {(i, j): "".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, len(words) + 1)}
        others = [run for run, text in runs.items() if text in self.others]
        return any(
            text in self.spellings and not any(i <= a and b <= j and (i, j) != (a, b) for i, j in others)
            for (a, b), text in runs.items()
        )


def spellings(name: str) -> set[str]:
    """How a name may be written, ``squashed``: as it is, and as one of several or several of one by the usual endings.

    Some are no words; they do no harm, as nothing is called by them.
    """
    word = squashed(name)
    several = {word.removesuffix(one) + many for one, many in ENDINGS if word.endswith(one)}
    single = {word.removesuffix(many) + one for one, many in ENDINGS if word.endswith(many)}
    return {form for form in {word} | several | single if form}


def squashed(name: str) -> str:
    """Canonical, without spaces and hyphens: "ice-cream", "ice cream" and "icecream" are one."""
    return canonical(name).replace(" ", "").replace("-", "")
