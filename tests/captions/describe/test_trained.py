"""The embedded captioner, trained on one corpus, describes single pictures like its own stage."""

from pathlib import Path

import pytest

from capwright.captions.describe import small, stage, trained
from capwright.captions.describe.concepts import ConceptConfig
from capwright.captions.describe.small_model import DecoderConfig
from capwright.captions.describe.small_training import TrainingConfig
from capwright.captions.runner import stage_folder
from capwright.core.errors import CapwrightError
from capwright.corpus.sidecars import read_sidecars


def test_it_says_what_the_stage_said(work: Path) -> None:
    small.run(
        small.DescribeConfig(
            work=work,
            picture_size=64,
            concepts=ConceptConfig(width=8, steps=4),
            decoder=DecoderConfig(width=16, layers=1, heads=2),
            training=TrainingConfig(noisy_steps=2, human_steps=2),
            writing=small.WritingConfig(sampled=0),
        )
    )
    weights = work / "models" / "small-captioner" / "weights"
    config = stage.DescribeConfig(
        work=work,
        backend="trained",
        options=trained.Config(model=str(weights), picture_size=64, batch_size=7),
    )
    assert stage.run(config).captions == 48
    own = read_sidecars(stage_folder(work, "describe-small"))["text"].to_pylist()
    assert read_sidecars(stage_folder(work, "describe-trained"))["text"].to_pylist() == own


def test_errors_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CapwrightError, match="there is no trained captioner at ''"):
        trained.build(trained.Config(), "short")
    with pytest.raises(CapwrightError, match="writes short captions, not 'long'"):
        trained.build(trained.Config(model=str(tmp_path)), "long")
