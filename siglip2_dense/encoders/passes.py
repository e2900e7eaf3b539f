"""A tower's passes, for torch's FSDP2: outside of them its parameters are in shards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


class Pass(nn.Module):
    """Around a tower: what it is called with is a function that uses the tower's parts, and its arguments.

    FSDP2 gathers parameters for a module's own ``forward``. Our towers are entered in other ways too; or in parts, of
    which ranks have other numbers and would wait for each other. What the function returns must be tensors, or tuples
    and dictionaries of them: there torch looks for what the way back begins with.
    """

    def __init__(self, *parts: nn.Module | None):
        super().__init__()
        self.parts = nn.ModuleList(part for part in parts if part is not None)

    def forward(self, function: Callable, *arguments) -> Any:
        return function(*arguments)


def within(around: tuple[Pass, ...], function: Callable, *arguments) -> Any:
    """The function's result, inside of the pass if there is one; a tuple, since modules may not be attributes here."""
    return around[0](function, *arguments) if around else function(*arguments)
