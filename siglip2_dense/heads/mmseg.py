"""mmsegmentation's own heads on our features."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from siglip2_dense.contracts import IGNORE, EncoderFacts, Features
from siglip2_dense.errors import UserError
from siglip2_dense.registry import MODELS


@MODELS.register_module()
class MMSegHead(nn.Module):
    """Gives a head of mmsegmentation what it asks for: widths, number of classes, the ignored label, a list of maps.

    Only the head's ``forward`` is used; loss and prediction are the task's. Written in a config as the head itself,
    ``dict(type='mmseg.UPerHead', _scope_='mmseg', layers='even4', channels=256)``.

    Args:
        facts, channels: of the encoder and the task.
        head: the config of the head.
        layers, norm: which maps; one gives the head an integer width, several give it lists.
    """

    pooled = "none"

    def __init__(
        self,
        facts: EncoderFacts,
        channels: int,
        head: dict,
        layers: str | Sequence[int] = "last",
        norm: bool = True,
    ):
        super().__init__()
        import mmseg.models  # noqa: F401  (registers its heads; takes seconds, so only where one is asked for)
        from mmseg.registry import MODELS as MMSEG_MODELS

        self.taps = facts.taps(layers, norm)
        widths = [facts.widths[tap.block] for tap in self.taps]
        several = len(widths) > 1
        filled = dict(
            in_channels=widths if several else widths[0],
            in_index=list(range(len(widths))) if several else 0,
            num_classes=channels,
            ignore_index=IGNORE,
        )
        try:
            self.head = MMSEG_MODELS.build({"_scope_": "mmseg", **filled, **head})
        except (KeyError, TypeError) as error:  # how its registry answers to a name or an argument it does not know
            raise UserError(f"mmsegmentation cannot build {head['type']}: {str(error).splitlines()[0]}") from error
        self.head.init_weights()

    def forward(self, features: Features) -> Tensor:
        """-> (B, K, h, w) logits. Raises UserError for images at their native aspect that are not of one shape."""
        if features.valid is not None and not features.valid.all():
            raise UserError(
                "heads of mmsegmentation would read what stands between images of several shapes, as an encoder gives "
                "them that keeps the aspect; crop the images to one size, or take LinearHead, DPTHead or Probe3DHead."
            )
        return self.head([features.maps[tap].float() for tap in self.taps])
