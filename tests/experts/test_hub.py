"""Experts of transformers: tiny ones with random weights, loaded from folders as any other."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from capwright.core.errors import CapwrightError
from capwright.experts.hub import HubExpert, HubModel, facts

SIDE = 64
TASKS = {
    "segformer": "segmentation", "maskformer": "segmentation", "glpn": "depth", "dpt": "depth",
    "depth_anything": "depth",
}  # fmt: skip


def chosen(task: str, name: str, **changes: Any) -> HubModel:
    fields: dict[str, Any] = {
        "task": task, "name": name, "revision": "main", "trust_remote_code": False,
        "device": "cpu", "precision": "fp32", "picture_size": SIDE,
    }  # fmt: skip
    return HubModel(**{**fields, **changes})


def pictures(count: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", TASKS)
def test_labels_have_their_size_and_do_not_depend_on_the_batch(
    model: Callable[[str], str], name: str
) -> None:
    task = TASKS[name]
    expert = HubExpert(chosen(task, model(name)))
    together = expert.label(pictures(), 16, [task])[task]
    assert together.shape == (3, 16, 16)
    alone = expert.label(pictures()[1:2], 16, [task])[task][0]
    if task == "segmentation":
        assert together.dtype == np.uint8
        assert (together[1] == alone).mean() > 0.98  # a tie may fall either way
        assert set(np.unique(together)) <= set(range(6))
    else:
        assert np.allclose(together[1], alone, rtol=1e-4, atol=1e-5, equal_nan=True)


def test_depth_is_that_of_the_pipeline(model: Callable[[str], str]) -> None:
    import transformers

    pipeline = transformers.pipeline("depth-estimation", model=model("dpt"), device="cpu")
    said = pipeline(Image.fromarray(pictures()[0]))["predicted_depth"]
    expert = HubExpert(chosen("depth", model("dpt")), "relative")
    ours = expert.label(pictures()[:1], SIDE, ["depth"])["depth"][0]
    assert np.allclose(ours, said.numpy(), atol=1e-5)


def test_classes_are_those_of_the_pipeline(model: Callable[[str], str]) -> None:
    import transformers

    pipeline = transformers.pipeline("image-segmentation", model=model("segformer"), device="cpu")
    said = pipeline(Image.fromarray(pictures()[0]))
    hub = chosen("segmentation", model("segformer"))
    ours = HubExpert(hub).label(pictures()[:1], SIDE, ["segmentation"])["segmentation"][0]
    names = facts(hub, "auto").classes
    assert {part["label"] for part in said} == {names[c] for c in np.unique(ours)}
    for part in said:
        assert np.array_equal(np.asarray(part["mask"]) > 0, ours == names.index(part["label"]))


def test_facts_come_from_the_configuration_alone(model: Callable[[str], str]) -> None:
    found = facts(chosen("segmentation", model("maskformer")), "auto")
    assert found.name == "maskformer" and len(found.revision) == 12
    assert found.classes == tuple(f"thing {i}" for i in range(6)) and found.depth_kind == ""
    for name, kind in (("glpn", "metric"), ("dpt", "relative"), ("depth_anything", "metric")):
        assert facts(chosen("depth", model(name)), "auto").depth_kind == kind
    assert facts(chosen("depth", model("dpt")), "metric").depth_kind == "metric"


def test_depth_that_is_no_distance_is_unknown(model: Callable[[str], str]) -> None:
    expert = HubExpert(chosen("depth", model("dpt")), "metric")
    with torch.no_grad():
        expert.model.head.head[-2].bias.fill_(-1e3)  # a ReLU follows: 0 everywhere
    assert np.isnan(expert.label(pictures()[:1], 16, ["depth"])["depth"]).all()


def test_a_cropping_processor_is_told_not_to(model: Callable[[str], str], tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "crops"
    shutil.copytree(model("segformer"), folder)
    import transformers

    transformers.BeitImageProcessor(
        size={"height": 64, "width": 64}, crop_size={"height": 32, "width": 32},
        do_center_crop=True,
    ).save_pretrained(folder)  # fmt: skip
    expert = HubExpert(chosen("segmentation", str(folder)))
    assert expert.label(pictures(), 16, ["segmentation"])["segmentation"].shape == (3, 16, 16)
    assert not expert.processor.do_center_crop


def test_a_users_faults(
    model: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CapwrightError, match="is a segformer, which does no depth: give a model"):
        facts(chosen("depth", model("segformer")), "auto")
    with pytest.raises(CapwrightError, match="is a glpn, which does no segmentation"):
        facts(chosen("segmentation", model("glpn")), "auto")
    with pytest.raises(CapwrightError, match=r"could not be loaded .*: give the hub id of a model"):
        facts(chosen("depth", str(tmp_path)), "auto")
    (tmp_path / "broken").mkdir()
    for file in Path(model("glpn")).iterdir():
        data = file.read_bytes()
        (tmp_path / "broken" / file.name).write_bytes(
            data[:100] if file.suffix == ".safetensors" else data
        )
    with pytest.raises(CapwrightError, match="could not be loaded"):
        HubExpert(chosen("depth", str(tmp_path / "broken")))
