"""The arms of the pretraining study: each changes one thing against its control.

Reads and writes nothing. `pretraining_study.py` runs them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from capwright.pretrain.config import (
    Augmentation,
    CaptioningSettings,
    CaptionSource,
    ContrastiveSettings,
    NonContrastiveSettings,
    PretrainConfig,
    ReinforcedSettings,
    Sampling,
    SelfDistillationSettings,
)
from capwright.pretrain.schedule import Schedule
from capwright.pretrain.settings.non_contrastive import XCLIP_OBJECTIVES


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to train."""

    what: str  # for the table
    control: str = "selected"  # the arm that it differs from in one thing
    changes: Mapping[str, Any] = field(default_factory=dict)  # of the study's PretrainConfig
    length: float = 1.0  # samples seen, in those of the study

    def apply(self, config: PretrainConfig) -> PretrainConfig:
        """The study's plan with this arm's changes."""
        samples = round(config.samples * self.length)
        return replace(
            config, **{"samples": samples, "warmup_samples": samples // 15, **self.changes}
        )


REINFORCED = "reinforced"
TEACHER = "selected ×4"  # the run whose embeddings that arm learns from


def selected_captions(work: Path) -> CaptionSource:
    """What every arm trains on unless it says otherwise."""
    return CaptionSource(name="selected", folder=work / "captions" / "select")


def arms(work: Path) -> dict[str, Arm]:
    """Every arm by its name, controls first."""
    selected, alt = selected_captions(work), CaptionSource(name="alt")
    controls = {
        "alt": Arm(what="alt text alone", control="", changes={"captions": (alt,)}),
        "selected": Arm(what="Capwright's captions alone", control="alt"),
        "selected ×2": Arm(what="the same for twice the samples", length=2),
        TEACHER: Arm(what="the same for four times the samples", length=4),
        "all patches": Arm(what="no patch is dropped", changes={"patch_dropout": 0.0}),
    }
    mobile = {"model": "nano-mci", "patch_dropout": 0.0}
    towers = {
        "mobile, alt": Arm(
            what="MCi-style tower, alt text", control="", changes={"captions": (alt,), **mobile}
        ),
        "mobile": Arm(what="MCi-style tower, our captions", control="mobile, alt", changes=mobile),
    }
    return controls | _samplings(alt, selected) | _objectives(alt, selected) | towers


def _samplings(alt: CaptionSource, selected: CaptionSource) -> dict[str, Arm]:
    both = {"captions": (alt, selected)}
    scored = CaptionSource(name="selected", folder=selected.folder, score="score")
    several = {"sampling": Sampling(mode="multi_positive"), "objectives": {"multi_positive": 1.0}}
    return {
        "captions: mix": Arm(what="alt text or ours, one at random", changes=both),
        "captions: both": Arm(
            what="alt text and ours each step", changes={**both, "sampling": Sampling(mode="both")}
        ),
        "captions: concat": Arm(
            what="alt text and ours in one text",
            changes={**both, "sampling": Sampling(mode="concat")},
        ),
        "captions: multi_positive": Arm(
            what="all captions of both are positives", changes={**both, **several}
        ),
        "captions: by_score": Arm(
            what="ours, drawn by score",
            changes={"captions": (scored,), "sampling": Sampling(by_score=2.0)},
        ),
    }


def _objectives(alt: CaptionSource, selected: CaptionSource) -> dict[str, Arm]:
    silc = {
        "self_distillation": SelfDistillationSettings(
            momentum=0.99, prototypes=1024, hidden_width=256, bottleneck=64
        ),
        "augmentation": Augmentation(crop_area=(0.4, 1.0)),
    }
    nclip = {"non_contrastive": NonContrastiveSettings(hidden_width=256, running_mean=0.5)}
    reinforced = {
        "captions": (alt, selected),
        "sampling": Sampling(mode="both"),
        "reinforced": ReinforcedSettings(distillation=0.75),
    }
    coca = {"captioning": CaptioningSettings(decoder_width=128, decoder_layers=1)}
    return {
        "sigmoid": Arm(
            what="SigLIP's form of the loss",
            changes={"contrastive": ContrastiveSettings(form="sigmoid")},
        ),
        "self_distillation": _beside("self_distillation", "SILC, all the time", silc),
        "self_distillation late": _beside(
            "self_distillation", "SILC in the last fifth", silc, ((0.8, 0.0), (0.8, 1.0))
        ),
        "pseudo_labels": _beside(
            "pseudo_labels", "CLIPTeX with a small expert", {}, control="all patches"
        ),
        "captioning": _beside("captioning", "CoCa's decoder", coca, control="all patches"),
        "contrastive and mae": _beside("masked_autoencoder", "masked autoencoder beside", {}),
        "xclip": Arm(
            what="nCLIP 0.7 and contrastive 0.3",
            changes={"objectives": dict(XCLIP_OBJECTIVES), **nclip},
        ),
        "nclip": Arm(what="nCLIP alone", changes={"objectives": {"non_contrastive": 1.0}, **nclip}),
        "mae": Arm(
            what="masked autoencoder alone, no text",
            changes={"objectives": {"masked_autoencoder": 1.0}},
        ),
        REINFORCED: Arm(
            what="a teacher's stored embeddings, λ 0.75",
            control="captions: both",
            changes={"objectives": {"reinforced": 1.0}, **reinforced},
        ),
    }


def _beside(
    objective: str,
    what: str,
    changes: Mapping[str, Any],
    weight: Schedule = 1.0,
    control: str = "selected",
) -> Arm:
    """An objective beside the contrastive one."""
    objectives = {"contrastive": 1.0, objective: weight}
    return Arm(what=what, control=control, changes={"objectives": objectives, **changes})
