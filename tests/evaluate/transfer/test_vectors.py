"""Vectors of a frozen encoder: which they are, kept once, gone on with after a cut."""

from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from capwright.core.errors import CapwrightError
from capwright.datasets import load
from capwright.datasets.sets import ClassificationSet
from capwright.dense.backbone import Backbone, load_backbone
from capwright.evaluate.transfer import vectors as vectors_module
from capwright.evaluate.transfer.vectors import VectorPlan, VectorStore, prepared, vectors
from set_files import write_picture

TINY_VIT = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 16, "layers": 2, "head_width": 8},
    "text_cfg": {"context_length": 12, "width": 16, "heads": 2, "layers": 1},
}
PLAN = VectorPlan(image_size=32)


@pytest.fixture
def backbone() -> Backbone:
    found = load_backbone(None, model=TINY_VIT)
    found.freeze()
    return found


@pytest.fixture
def pictures(tmp_path: Path) -> ClassificationSet:
    for number in range(9):
        name = ("ants", "bees", "cats")[number % 3]
        write_picture(tmp_path / "set" / "train" / name / f"{number}.png", (50, 40), 25 * number)
    found = load("imagenet", tmp_path / "set", "train")
    assert isinstance(found, ClassificationSet)
    return found


def test_the_penultimate_vector_is_what_the_projection_gets(backbone: Backbone) -> None:
    images = torch.randn(3, 3, 32, 32)
    before, after = (vectors(backbone, images, kind) for kind in ("penultimate", "embedding"))
    assert (before.shape, after.shape) == ((3, 16), (3, 12))
    torch.testing.assert_close(before @ backbone.visual.proj, after)
    assert isinstance(backbone.visual.proj, torch.nn.Parameter)
    patches = vectors(backbone, images, "patches")
    torch.testing.assert_close(patches, backbone(images)[-1].mean(dim=(2, 3)))


def test_timm_towers_have_one_too(tmp_path: Path) -> None:
    images = torch.randn(2, 3, 64, 64)
    inside = load_backbone(None, model="nano")
    before, after = (vectors(inside, images, kind) for kind in ("penultimate", "embedding"))
    torch.testing.assert_close(inside.visual.head(before), after)
    bare = load_backbone(None, model="timm:capwright_vit_nano_s8")
    same = (vectors(bare, images, kind) for kind in ("penultimate", "embedding"))
    torch.testing.assert_close(*same)


def test_pictures_are_cut_at_the_centre_of_the_shorter_side() -> None:
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, 20:60] = 200
    image = Image.fromarray(pixels)
    whole = prepared(image, 20)
    assert whole.shape == (3, 20, 20)
    assert whole.float().mean() > 190
    assert (prepared(image, 40) == 200).all()
    half = prepared(image, 20, 0.5)  # of a picture of 40 x 80
    assert torch.equal(half, torch.from_numpy(pixels[10:30, 30:50]).permute(2, 0, 1))


def test_vectors_are_those_of_open_clips_own_preprocessing(
    backbone: Backbone, pictures: ClassificationSet, tmp_path: Path
) -> None:
    found_ND, labels_N = VectorStore(backbone, pictures, tmp_path / "kept", PLAN, source="train")(
        range(9)
    )
    transform = open_clip.transform.image_transform(
        32, is_train=False, mean=backbone.mean, std=backbone.std
    )
    images = torch.stack([transform(pictures[number].image) for number in range(9)])
    with torch.no_grad():
        torch.testing.assert_close(found_ND, vectors(backbone, images, "penultimate"))
    assert labels_N.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_a_picture_goes_through_the_encoder_once(
    backbone: Backbone, pictures: ClassificationSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    real = vectors_module.vectors

    def counted(
        backbone: Backbone, images: torch.Tensor, kind: vectors_module.Kind
    ) -> torch.Tensor:
        seen.append(len(images))
        return real(backbone, images, kind)

    monkeypatch.setattr(vectors_module, "vectors", counted)
    store = VectorStore(backbone, pictures, tmp_path / "kept", PLAN, source="train", batch=2)
    few_ND, _ = store([7, 2, 4])
    blank = 1  # tells how many features there are
    assert sum(seen) == blank + 3
    again = VectorStore(backbone, pictures, tmp_path / "kept", PLAN, source="train", batch=2)
    all_ND, labels_N = again(range(9))
    assert sum(seen) == blank + 9
    torch.testing.assert_close(all_ND[[7, 2, 4]], few_ND)
    assert labels_N[[7, 2, 4]].tolist() == [2, 0, 1]
    again([3, 3, 1])
    assert sum(seen) == blank + 9


def test_a_cut_run_goes_on_with_what_is_missing(
    backbone: Backbone, pictures: ClassificationSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole_ND, _ = VectorStore(backbone, pictures, tmp_path / "whole", PLAN, source="train")(
        range(9)
    )
    monkeypatch.setattr(vectors_module, "SAVED", 1)
    real, calls = vectors_module.vectors, []

    def failing(
        backbone: Backbone, images: torch.Tensor, kind: vectors_module.Kind
    ) -> torch.Tensor:
        calls.append(len(images))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(backbone, images, kind)

    monkeypatch.setattr(vectors_module, "vectors", failing)
    store = VectorStore(backbone, pictures, tmp_path / "kept", PLAN, source="train", batch=2)
    with pytest.raises(KeyboardInterrupt):
        store(range(9))
    calls.clear()
    monkeypatch.setattr(vectors_module, "vectors", lambda *given: calls.append(1) or real(*given))
    found_ND, _ = VectorStore(backbone, pictures, tmp_path / "kept", PLAN, source="train", batch=2)(
        range(9)
    )
    torch.testing.assert_close(found_ND, whole_ND)
    assert len(calls) == 3  # of five batches two were kept


def test_another_plan_has_vectors_of_its_own(
    backbone: Backbone, pictures: ClassificationSet, tmp_path: Path
) -> None:
    first_ND, _ = VectorStore(backbone, pictures, tmp_path, PLAN, source="train")(range(9))
    other = VectorPlan(image_size=32, kind="embedding")
    other_ND, _ = VectorStore(backbone, pictures, tmp_path, other, source="train")(range(9))
    assert (first_ND.shape[1], other_ND.shape[1]) == (16, 12)


def test_without_a_size_pictures_have_the_encoders_own(
    backbone: Backbone, pictures: ClassificationSet, tmp_path: Path
) -> None:
    said_ND, _ = VectorStore(backbone, pictures, tmp_path, PLAN, source="train")(range(9))
    own = VectorStore(backbone, pictures, tmp_path, VectorPlan(), source="train")
    assert len(list(tmp_path.glob("*/vectors.npy"))) == 1  # the same ones
    torch.testing.assert_close(own(range(9))[0], said_ND)


def test_splits_whose_pictures_have_the_same_names_are_kept_apart(
    backbone: Backbone, tmp_path: Path
) -> None:
    stores = []
    for split, colour in (("train", 10), ("val", 240)):
        write_picture(tmp_path / split / "ants" / "0.png", (40, 40), colour)
        pictures = load("imagenet", tmp_path, split)
        stores.append(VectorStore(backbone, pictures, tmp_path / "kept", PLAN, source=split))  # type: ignore[arg-type]
    first, other = (store([0])[0] for store in stores)
    assert not torch.allclose(first, other)


def test_bad_input_is_said(backbone: Backbone, pictures: ClassificationSet, tmp_path: Path) -> None:
    with pytest.raises(CapwrightError, match="vectors of kind 'logits'"):
        VectorPlan(kind="logits")  # type: ignore[arg-type]
    with pytest.raises(CapwrightError, match=r"from 1.5 of a picture at 0 pixels"):
        VectorPlan(crop_share=1.5)
    fewer = ClassificationSet(
        name="toys", keys=pictures.keys, read=pictures.read, classes=pictures.classes[:2]
    )
    with pytest.raises(CapwrightError, match="has the label 2, but there are 2 class names"):
        VectorStore(backbone, fewer, tmp_path, PLAN, source="train")(range(9))
