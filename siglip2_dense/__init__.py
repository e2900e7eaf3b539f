"""Dense-prediction heads on frozen image encoders: train, evaluate, run.

The public names are imported at first use, so that ``import siglip2_dense`` and ``--help`` stay fast.
"""

from importlib import import_module

__version__ = "0.1.0"

_WHERE = {
    "FrozenEncoder": "siglip2_dense.encoders.frozen",
    "LinearHead": "siglip2_dense.heads.linear",
    "DPTHead": "siglip2_dense.heads.dpt",
    "Probe3DHead": "siglip2_dense.heads.dpt",
    "DenseProbe": "siglip2_dense.models.probe",
    "ZeroShot": "siglip2_dense.models.zeroshot",
    "CATSeg": "siglip2_dense.models.catseg",
    "CATSegHead": "siglip2_dense.heads.catseg",
    "OWLViT": "siglip2_dense.models.owlvit",
    "OWLViTHead": "siglip2_dense.heads.owlvit",
    "Predictor": "siglip2_dense.predict.predictor",
    "TextEncoder": "siglip2_dense.encoders.text",
}

__all__ = sorted(_WHERE)


def __getattr__(name: str):
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_WHERE])
