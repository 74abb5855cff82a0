"""Every pretraining recipe builds as it is, trains when it is shrunk, and says true hours."""

import pkgutil
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import expert_labels
import tiny_teachers
from capwright import recipes
from capwright.experts import reinforce
from capwright.models import init, towers
from capwright.models.image_sizes import at_size
from capwright.pretrain import engine
from capwright.pretrain.config import PretrainConfig
from capwright.pretrain.task import find_objective, reads_text
from capwright.recipes.load import load_recipe

PUBLISHED = (
    "clip_b16_datacomp12m", "cliptex_b16_ft", "mobileclip_s0_reinforced",
    "mobileclip_s1_reinforced", "mobileclip_s2_reinforced", "silc_b16", "xclip_b16",
)  # fmt: skip
ALL = (*PUBLISHED, "scenes_clip")
IMAGE_MILLIONS = {  # image towers: MCi as published, ViT-B/16 as open_clip counts it
    "mobileclip_s0_reinforced": 11.4, "mobileclip_s1_reinforced": 21.5,
    "mobileclip_s2_reinforced": 35.7,
}  # fmt: skip
GPUS = 8
TINY_TEXT = {"context_length": 12, "width": 16, "heads": 2, "layers": 1}
TINY_VIT = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8},
    "text_cfg": TINY_TEXT,
}
TINY_MCI = {
    "embed_dim": 160,
    "vision_cfg": {
        "timm_model_name": "capwright_mci_nano_s8",
        "timm_pool": "avg",
        "timm_proj": None,
        "image_size": 32,
    },
    "text_cfg": TINY_TEXT,
}


def docstring(name: str) -> str:
    module = __import__(f"{recipes.__name__}.{name}", fromlist=["config"])
    return str(module.__doc__)


@pytest.fixture(scope="module")
def built() -> Callable[[str], Any]:
    """The recipe's model without its weights' memory, each made once."""
    known: dict[tuple[str, int], Any] = {}

    def build(name: str) -> Any:
        config = load_recipe(name)
        found = towers.model_config(config.model)
        found["vision_cfg"]["image_size"] = config.image_size
        key = (config.model, config.image_size)
        if key not in known:
            with torch.device("meta"):
                known[key] = towers.build(found)
        return known[key]

    return build


def test_every_recipe_with_a_pretraining_plan_is_tested() -> None:
    names = {module.name for module in pkgutil.iter_modules(recipes.__path__)}
    makers = {name for name in names if "config() -> PretrainConfig" in source(name)}
    assert makers == set(ALL)


def source(name: str) -> str:
    return (Path(recipes.__path__[0]) / f"{name}.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ALL)
def test_the_plan_is_whole(name: str) -> None:
    config = load_recipe(name)
    assert isinstance(config, PretrainConfig)
    config.check_together()
    assert config.out == Path("runs") / name
    stages = [source.folder for source in config.captions if source.folder]
    assert all(folder.parent == config.work / "captions" for folder in stages)
    assert all(find_objective(objective) for objective in config.objectives)
    assert reads_text(config)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_docstring_says_what_a_user_asks(name: str) -> None:
    text, config = docstring(name), load_recipe(name)
    assert f"torchrun --nproc-per-node {GPUS} -m capwright pretrain {name}\n" in text
    assert re.search(r"Hardware: 8 A100.* untested by us on GPUs", text, re.DOTALL)
    assert "derived and not\nmeasured" in text or "derived and not measured" in text
    assert re.search(r"Published.*(primary|secondary) source", text, re.DOTALL)
    whole = text + docstring("mobileclip")
    made = f"capwright index {config.work.parent}/shards --work {config.work}"
    assert made in whole
    assert config.batch_size % GPUS == 0


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_model_is_one_of_open_clips(name: str, built: Callable[[str], Any]) -> None:
    config, model = load_recipe(name), built(name)
    assert config.model in open_clip.list_models()
    millions = sum(p.numel() for p in model.visual.parameters()) / 1e6
    assert millions == pytest.approx(IMAGE_MILLIONS.get(name, 86.2), rel=0.005)


def test_the_initial_weights_fit_the_model(built: Callable[[str], Any]) -> None:
    config = load_recipe("cliptex_b16_ft")
    model, tag = towers.resolve(config.init)
    weights = open_clip.get_pretrained_cfg(model, tag)
    assert weights["quick_gelu"]
    init._check_activation(built("cliptex_b16_ft"), config.init)
    assert open_clip.get_model_config(model)["vision_cfg"]["image_size"] == config.image_size


def flops(module: Callable[[Any], Any], value: torch.Tensor) -> float:
    with FlopCounterMode(display=False) as counter:
        module(value)
    return float(counter.get_total_flops())


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_hours_follow_from_the_pace_that_the_docstring_names(
    name: str, built: Callable[[str], Any]
) -> None:
    """1.3 hours for 12.8 million samples of ViT-B/16 with two captions, on as many GPUs."""
    config, model = load_recipe(name), built(name)

    def image(of: Any, side: int) -> float:
        # the whole tower, as the peer computes it
        with at_size(of.visual, side, side):
            return flops(of.encode_image, torch.empty(1, 3, side, side, device="meta"))

    def text(of: Any) -> float:
        return flops(of.encode_text, torch.zeros(1, 77, dtype=torch.long, device="meta"))

    peer = built("clip_b16_datacomp12m")
    pace = 12.8e6 * 3 * (image(peer, 224) + 2 * text(peer)) / 1.3  # an hour
    assert pace / 3600 / GPUS == pytest.approx(48e12, rel=0.01)
    assert "48 TFLOP/s" in docstring(name)
    settings = config.self_distillation
    distilled = "self_distillation" in config.objectives
    views = settings.global_views if distilled else 1
    sample = 3 * (views * image(model, config.image_size) + config.sampling.sets * text(model))
    if distilled:
        sample += views * image(model, config.image_size)
        sample += 3 * settings.local_views * image(model, settings.local_size or 0)
    said = " ".join(docstring(name).split())
    hours = float(re.search(r"about (\d+) hours", said)[1])  # type: ignore[index]
    assert hours == pytest.approx(config.samples * sample / pace, rel=0.05)
    assert float(re.search(r"(\d+) GFLOP(?! a)", said.replace("141 GFLOP", ""))[1]) == (  # type: ignore[index]
        pytest.approx(sample / 1e9, rel=0.01)
    )


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of twelve pictures with labels, captions and what a teacher knows of them."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("recipes")
    tiny_teachers.write_corpus(folder / "tars", folder / "work")
    teacher = tiny_teachers.teacher(folder / "teacher", seed=0, side=16)
    reinforce.run(
        reinforce.ReinforceConfig(work=folder / "work", teachers=(teacher,), augmentations=2)
    )
    expert_labels.label_corpus(folder / "work")
    return folder / "work"


def shrunk(config: PretrainConfig, work: Path, out: Path) -> PretrainConfig:
    """The same plan for two steps of a tiny model; what it combines stays."""
    described = work / "captions" / "describe-tiny"
    captions = [replace(s, folder=described if s.folder else None) for s in config.captions]
    convolutions = "Mobile" in str(config.model)
    return replace(
        config,
        work=work,
        out=out,
        captions=tuple(captions),
        model=TINY_MCI if convolutions else TINY_VIT,
        init=None,
        tokenizer="open_clip",
        image_size=32,
        stored_size=None if config.stored_size is None else 40,
        batch_size=8,
        samples=16,
        warmup_samples=8,
        checkpoint_samples=16,
        threads=1,
        loader_workers=0,
        log_every_steps=1,
        self_distillation=replace(
            config.self_distillation, local_size=16, prototypes=8, hidden_width=16, bottleneck=8
        ),
        non_contrastive=replace(config.non_contrastive, prototypes=8, hidden_width=16),
        # the stage writes segmentation and depth here; normals are tested with the objective
        pseudo_labels=replace(config.pseudo_labels, normals=0.0, label_size=8),
    )


def test_the_mobile_recipes_differ_in_their_tower_alone() -> None:
    first, *others = (load_recipe(name) for name in IMAGE_MILLIONS)
    for other in others:
        assert other.model != first.model
        assert replace(other, model=first.model, out=first.out) == first


@pytest.mark.parametrize("name", [name for name in ALL if not re.search("_s[12]_", name)])
def test_its_combination_of_objectives_trains(
    name: str, work: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = shrunk(load_recipe(name), work, tmp_path / "run")
    summary = engine.run(config)
    assert summary.samples_seen == 16
    shown = capfd.readouterr().err
    assert all(f"{objective} × " in shown for objective in config.objectives)
    torch.manual_seed(config.seed)  # the weights that it began with
    before = towers.build(config.model)
    after, _, _ = towers.load(summary.checkpoint)
    assert changed(before.visual, after.visual) and changed(before.text, after.text)


def changed(before: Any, after: Any) -> bool:
    pairs = zip(before.parameters(), after.parameters(), strict=True)
    return all(not torch.equal(*pair) for pair in list(pairs)[:1])
