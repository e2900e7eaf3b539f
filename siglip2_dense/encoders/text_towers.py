"""What text tower belongs to an encoder, and the building of it with its weights."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from siglip2_dense.encoders.catalogue import Entry, catalogue
from siglip2_dense.encoders.text_cache import stamp
from siglip2_dense.encoders.text_layouts import text_state, to_tips
from siglip2_dense.encoders.tokenizers import Rules
from siglip2_dense.encoders.weights import check_fit, find_file, fingerprint
from siglip2_dense.errors import UserError, first_line, nearest
from siglip2_dense.files import load_tensors, shards

# The NaFlex checkpoints are in no open_clip config; their text towers are those of the other SigLIP 2 of their width.
NAFLEX = {768: "ViT-B-16-SigLIP2-256", 1152: "ViT-SO400M-16-SigLIP2-256"}
# TIPS v2 by width: blocks, heads, hidden units of an MLP per unit of width. Source: google-deepmind/tips, pytorch/.
TIPS = {768: (12, 12, 4.0), 1024: (12, 16, 4.0), 1152: (27, 16, 4304 / 1152), 1536: (12, 24, 4.0)}
TIPS_VOCABULARY, TIPS_CONTEXT = 32_000, 64
RANDOM_SCALE = 1 / 0.07  # what CLIP and open_clip start from


@dataclass(frozen=True)
class Plan:
    """A text tower before it is built, as plain data."""

    encoder: str
    source: str  # the catalogue's: "open_clip:MODEL/TAG", "siglip2:REPOSITORY" or "tipsv2:REPOSITORY"
    config: dict  # open_clip's settings of a text tower
    embed_dim: int  # of the shared space
    quick_gelu: bool
    bias: float | None  # of logits, where training starts
    rules: Rules

    @property
    def kind(self) -> str:
        return self.source.partition(":")[0]

    @property
    def where(self) -> str:
        return self.source.partition(":")[2]

    @property
    def width(self) -> int:
        """Of an embedding."""
        return self.config["width"] if self.config.get("proj_type") == "none" else self.embed_dim

    @property
    def architecture(self) -> dict:
        """All that decides what the tower does with its weights."""
        return dict(kind=self.kind, config=self.config, embed_dim=self.embed_dim, quick_gelu=self.quick_gelu)


class Built(NamedTuple):
    """A text tower with its weights."""

    tower: nn.Module  # ids (N, context) -> (N, D), of any length; frozen, in eval mode
    fingerprint: str
    scale: float | None  # of cosines, in logits; none where the weights' file does not say
    bias: float | None  # of logits; only SigLIP has one

    def known(self) -> dict:
        return dict(fingerprint=self.fingerprint, scale=self.scale, bias=self.bias)


def plan_of(entry: Entry, model_args: dict | None = None) -> Plan:
    """The text tower of an encoder.

    model_args: open_clip's names of a text tower's settings, such as ``dict(width=64, layers=2)``, and ``embed_dim``.
    Raises UserError for an encoder that was not trained with texts, and for unknown settings.
    """
    kind, _, where = entry.text.partition(":")
    if not kind:
        families = sorted({other.name.partition("-")[0] for other in catalogue().values() if other.text})
        raise UserError(
            f"{entry.name} was not trained with texts, so that it has no text tower; take an encoder of "
            f"{', '.join(families)}."
        )
    if kind == "tipsv2":
        layers, heads, ratio = TIPS[entry.embed_dim]
        sizes = dict(width=entry.embed_dim, layers=layers, heads=heads, mlp_ratio=ratio, proj_type="none")
        settings = dict(embed_dim=entry.embed_dim)
        config = dict(**sizes, vocab_size=TIPS_VOCABULARY, context_length=TIPS_CONTEXT)
        style, repository = "tips", where
    else:
        settings = _of_open_clip(NAFLEX[entry.embed_dim] if kind == "siglip2" else where)
        config = settings["text_cfg"]
        repository = where if kind == "siglip2" else config.get("hf_tokenizer_name") or ""
        style = _style(where if kind == "siglip2" else repository)
    changes = dict(model_args or {})
    embed_dim = changes.pop("embed_dim", settings["embed_dim"])
    _check_settings(changes)
    config = {**config, **changes}
    rules = Rules(entry.name, style, config.get("context_length", 77), config.get("vocab_size", 49408), repository)
    return Plan(
        encoder=entry.name,
        source=entry.text,
        config=config,
        embed_dim=embed_dim,
        quick_gelu=settings.get("quick_gelu", False),
        bias=settings.get("init_logit_bias"),
        rules=rules,
    )


def _of_open_clip(where: str) -> dict:
    """open_clip's settings of "MODEL/TAG" or "MODEL"."""
    import open_clip

    model = where.partition("/")[0]
    settings = open_clip.get_model_config(model)
    if settings is None:
        raise UserError(f"open_clip {open_clip.__version__} has no model {model}: pip install -U open_clip_torch")
    if "SigLIP" in model:  # trained with the approximate GELU; open_clip builds the first SigLIP with the exact one
        settings["text_cfg"]["act_kwargs"] = dict(approximate="tanh")
    return settings


def _style(tokenizer: str) -> str:
    """The style (``tokenizers.STYLES``) of a tokenizer that open_clip names."""
    if not tokenizer:
        return "clip"
    if "siglip2" in tokenizer.lower():
        return "gemma"
    return "t5" if "siglip" in tokenizer.lower() else "bert"


def _check_settings(changes: dict) -> None:
    from open_clip import CLIPTextCfg

    known = [field.name for field in fields(CLIPTextCfg)]
    for key in changes:
        if key not in known:
            raise UserError(f"model_args: a text tower has no setting {key!r}: {nearest(key, known, ', '.join(known))}")


def create(plan: Plan) -> nn.Module:
    """The architecture, at random."""
    if plan.kind == "tipsv2":
        return _Tips(plan)
    from open_clip.model import _build_text_tower  # what builds a text tower without its image tower

    return _build_text_tower(plan.embed_dim, plan.config, plan.quick_gelu)


class _Tips(nn.Module):
    """TIPS v2's text tower, which masks the padding and pools the mean of the rest."""

    def __init__(self, plan: Plan):
        super().__init__()
        try:
            from transformers import Tipsv2TextConfig, Tipsv2TextModel
        except ImportError as error:
            raise UserError(
                f"{plan.encoder} has its text tower in transformers: pip install -U transformers"
            ) from error
        config = plan.config
        self.model = Tipsv2TextModel(
            Tipsv2TextConfig(
                vocab_size=config["vocab_size"],
                hidden_size=config["width"],
                intermediate_size=round(config["width"] * config["mlp_ratio"]),
                num_hidden_layers=config["layers"],
                num_attention_heads=config["heads"],
                max_position_embeddings=config["context_length"],
            )
        )

    def forward(self, ids: Tensor) -> Tensor:
        mask = (ids != self.model.config.pad_token_id).long()
        return self.model(input_ids=ids, attention_mask=mask).pooler_output


def origin_of_tower(plan: Plan, weights: str) -> str | None:
    """What tells a tower and its weights without loading them; none for random ones.

    Raises UserError for a seed that is none and a file that is not there.
    """
    if _seed(weights) is not None:
        return None
    where = plan.source if weights == "hub" else stamp(shards(find_file(weights)))
    return f"tower {where} {json.dumps(plan.architecture, sort_keys=True)}"


def _seed(weights: str) -> int | None:
    """The seed of "random" or "random:SEED"; none for other weights."""
    word, _, seed = weights.partition(":")
    if word != "random":
        return None
    if seed and not seed.isdecimal():
        raise UserError(f"weights={weights!r}: the seed after 'random:' is a whole number.")
    return int(seed or 0)


def build(plan: Plan, weights: str) -> Built:
    """The tower with its weights: "hub", "random" or "random:SEED", or a file or folder.

    Raises UserError when the weights cannot be had or do not fit.
    """
    seed = _seed(weights)
    path = None if seed is not None else _fetched(plan) if weights == "hub" else find_file(weights)
    with torch.random.fork_rng(devices=[]):  # whether texts were cached must not change what is drawn later
        torch.manual_seed(seed or 0)
        tower = create(plan).eval().requires_grad_(False)
    if path is None:
        return Built(tower, fingerprint(tower), RANDOM_SCALE, plan.bias)
    state = text_state(load_tensors(path), path)
    inner, tensors = (tower.model, to_tips(state.tensors)) if plan.kind == "tipsv2" else (tower, state.tensors)
    try:
        check_fit(inner, tensors)
    except UserError as error:
        raise UserError(f"{path} does not hold the text tower of {plan.encoder}: {error}") from error
    inner.load_state_dict(tensors)
    return Built(tower, fingerprint(tower), state.scale, state.bias)


def _fetched(plan: Plan) -> Path:
    """The hub's file of weights."""
    try:
        if plan.kind == "open_clip":
            from open_clip.pretrained import download_pretrained, get_pretrained_cfg

            return Path(download_pretrained(get_pretrained_cfg(*plan.where.split("/"))))
        from huggingface_hub import snapshot_download

        patterns = ["*.safetensors", "*.safetensors.index.json"]
        return find_file(snapshot_download(plan.where, allow_patterns=patterns))
    except Exception as error:  # the hub's clients have many
        tokenizer = "" if plan.rules.style == "clip" else " (and the tokenizer's with tokenizer=FILE)"
        raise UserError(
            f"the text tower of {plan.encoder} could not be fetched from the hub ({first_line(error)}); download "
            f"{_address(plan)} where there is a network and give it with weights=FILE{tokenizer}, or try "
            "weights='random'."
        ) from error


def _address(plan: Plan) -> str:
    if plan.kind != "open_clip":
        return f"model.safetensors of https://huggingface.co/{plan.where}"
    from open_clip.pretrained import get_pretrained_cfg

    settings = get_pretrained_cfg(*plan.where.split("/"))
    repository, _, file = settings.get("hf_hub", "").rpartition("/")
    return (
        f"{file or 'open_clip_model.safetensors'} of https://huggingface.co/{repository}"
        if repository
        else settings["url"]
    )
