"""What models of class names have in common: the text encoder, the vocabulary, and the vectors of what is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from mmengine.device import get_device
from torch import Tensor, nn

from siglip2_dense.errors import UserError
from siglip2_dense.models.probe import DenseProbe
from siglip2_dense.models.zeroshot import text_settings
from siglip2_dense.registry import MODELS, TASKS, build

NOT_OF_RECORDS = ("trainable", "checkpointing", "drop_path")  # of a text encoder's settings: a protocol says them


class TextProbe(DenseProbe):
    """A probe whose heads score names: those that its tasks were built with, or others (``set_vocabulary``).

    The texts of the names are computed once where the text tower stays as it is, at every step where parts of it
    train, and then once for each evaluation.

    Args:
        heads, encoder: as in DenseProbe, and so is whatever else is given.
        text: config of the text encoder. What it does not say is the encoder's own, see ``ZeroShot``; with
            ``trainable=["q", "v"]`` these parts of it train.

    Attributes:
        texts: as in ``ZeroShot``.
    """

    def __init__(
        self, heads: dict[str, dict], encoder: dict | nn.Module | None = None, text: dict | None = None, **probe
    ):
        settings = text_settings(encoder, text or {})
        trains = settings.get("trainable", "none") != "none"
        with torch.random.fork_rng(devices=[]):  # towers are drawn before they are loaded
            text_encoder = build(MODELS, settings)
        super().__init__(heads, encoder, text=text_encoder if trains else None, **probe)
        self._tasks = {name: dict(parts["task"]) for name, parts in heads.items()}
        self.check_heads()
        if text_encoder.width != self.facts.aligned_width:
            raise UserError(
                f"the texts of {settings.get('name')} have {text_encoder.width} dimensions, the maps of "
                f"{self.facts.name} {self.facts.aligned_width}; take the text encoder it was trained with."
            )
        self._settings = settings
        known = dict(fingerprint=text_encoder.fingerprint, tokenization=text_encoder.tokenization)
        self.texts = {**{key: value for key, value in settings.items() if key not in NOT_OF_RECORDS}, **known}
        self._embedded: dict[str, tuple] = {}  # of each head, what is asked for, and the vectors of that
        if not trains:
            self._embedded = self._embed(text_encoder, self.tasks)

    def check_heads(self) -> None:
        """Raise UserError for heads and tasks that this model cannot work with; called before texts are computed."""

    def text_encoder(self) -> nn.Module:
        """The one that trains, or else one with the weights that stay as they are, built anew."""
        return self.text or build(MODELS, self._settings)

    def set_vocabulary(
        self, classes: str | Sequence[str], queries: Mapping[str, Sequence[str]] | None = None, **settings
    ) -> None:
        """Ask for these classes from now on; see the task, whose other settings may be given too. Raises UserError for
        names that are none.
        """
        tasks = self.tasks_for(classes, queries, **settings)
        self._embedded = self._embed(self.text_encoder(), tasks)
        self.tasks.update(tasks)

    def tasks_for(
        self, classes: str | Sequence[str], queries: Mapping[str, Sequence[str]] | None = None, **settings
    ) -> dict:
        """The tasks of all heads with these classes instead of their own."""
        own = {"classes": classes, "queries": queries, **settings}
        return {name: build(TASKS, {**task, **own}) for name, task in self._tasks.items()}

    def train(self, mode: bool = True):
        if getattr(self, "text", None) is not None and (mode or self.training):  # else nothing has moved
            self._embedded.clear()
        return super().train(mode)

    def load_trained(self, state: dict[str, Tensor]) -> None:
        super().load_trained(state)
        if self.text is not None:
            self._embedded.clear()

    def _texts_of(self, name: str) -> Tensor:
        """The vectors of a head's queries, first those of the first."""
        if self.text is not None and self.training:
            return _texts(self.tasks[name], self.text.embed)
        if name not in self._embedded or self._embedded[name][0] != _asked(self.tasks[name]):
            self._embedded |= self._embed(self.text_encoder(), {name: self.tasks[name]})
        return self._embedded[name][1]

    def _embed(self, text_encoder: nn.Module, tasks: Mapping) -> dict[str, tuple]:
        """What these tasks ask for, and the vectors of that, by the names of their heads."""
        if text_encoder is not self.text:  # which is part of this model, and where that is
            text_encoder = text_encoder.to(get_device())
        encode = partial(text_encoder.encode, average=False)
        with torch.autocast(get_device(), enabled=False):
            return {name: (_asked(task), _texts(task, encode)) for name, task in tasks.items()}


def _texts(task, encode: Callable[..., Tensor]) -> Tensor:
    """The vectors of a task's queries."""
    return task.texts(lambda names: encode(names, task.templates, clean=task.clean_names))


def _asked(task) -> tuple:
    """All that its texts depend on."""
    return task.members, str(task.templates), task.clean_names
