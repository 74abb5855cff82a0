"""One arm with one seed: learn, choose the ensemble weight on the validation part, test.

Reads and writes as stage.py says.

Shapes: C classes, E joint space, N pictures.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from capwright import datasets
from capwright.adapt.held_out import require_held_out
from capwright.adapt.learned_tokens import PrefixedTexts
from capwright.adapt.zsseg import learners, self_training
from capwright.adapt.zsseg.config import FIXED, LEARNED, ONE_STAGE, SELF_TRAINED, Config
from capwright.adapt.zsseg.inference import (
    CLIP,
    PROPOSALS,
    Segmenter,
    answers,
    one_stage_labels,
    reading,
    readings,
)
from capwright.adapt.zsseg.one_stage import PixelClassifier
from capwright.adapt.zsseg.prompt_learning import learn, seen_crops
from capwright.adapt.zsseg.prompts import class_vectors, fixed_texts
from capwright.adapt.zsseg.proposals import ProposalNetwork
from capwright.adapt.zsseg.splits import Split, split_metrics, split_of
from capwright.adapt.zsseg.words import vocabulary_of
from capwright.core.errors import CapwrightError
from capwright.core.progress import Progress
from capwright.core.reading import in_order
from capwright.datasets.sets import SegmentationItem, SegmentationSet, require_same_classes
from capwright.dense.backbone import load_backbone
from capwright.dense.words import Vocabulary
from capwright.evaluate.encoder import Encoder, load_encoder
from capwright.evaluate.outcomes import Outcome, Outcomes, write_outcomes
from capwright.evaluate.results import Protocol, Result, code_revision, write_results
from capwright.evaluate.training_free import Counts
from capwright.evaluate.transfer.loop import STATE, Schedule, fit
from capwright.models.devices import pick_device

PROTOCOL = Protocol(name="zsseg", version="v1")
Metrics = dict[str, float | None]
Labelled = tuple[SegmentationItem, dict[str, NDArray[np.uint8]]]  # an item, answers by reading


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What all arms of a seed share."""

    config: Config
    seed: int
    encoder: Encoder
    split: Split
    vocabulary: Vocabulary
    train: SegmentationSet
    learned: tuple[int, ...]  # numbers of the training pictures
    validation: tuple[int, ...]
    test: SegmentationSet
    tested: tuple[int, ...]
    device: torch.device

    @property
    def folder(self) -> Path:
        """Of the seed."""
        return self.config.out / str(self.seed)


def measure_arm(config: Config, seed: int, arm: str) -> None:
    """Learn and test an arm, and write its results."""
    scene = prepare(config, seed)
    folder = scene.folder / arm
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if arm == ONE_STAGE:
            metrics, outcomes = _one_stage(scene, folder)
        else:
            metrics, outcomes = _two_stages(scene, arm, folder)
    result = Result(
        dataset=config.dataset,
        model=scene.encoder.name,
        pretrained=scene.encoder.pretrained,
        task="zero_shot_segmentation",
        metrics=metrics,
        protocol=PROTOCOL,
        seed=seed,
        samples_seen=scene.encoder.samples_seen,
        code_revision=code_revision(),
        options={
            "arm": arm,
            "unseen": [scene.split.classes[number] for number in scene.split.unseen],
            "learned": len(scene.learned),
            "validation": len(scene.validation),
            "pictures": len(scene.tested),
        },
    )
    write_outcomes(folder / "results.npz", [outcomes])
    write_results(folder / "results.json", [result])


def prepare(config: Config, seed: int) -> Scene:
    """Load what the arms need; CapwrightError for sets that do not fit together."""
    places = (config.data, config.split), (config.test_data or config.data, config.test_split)
    require_held_out(*places)
    train, test = (_pictures(config, *place) for place in places)
    require_same_classes(train, test)
    encoder = load_encoder(config.checkpoint, model=config.model, seed=seed)
    device = pick_device(config.device)
    encoder.model.eval().requires_grad_(False).to(device)
    number = min(len(train), config.train_pictures or len(train))
    kept = max(1, round(config.validation * number))
    if kept >= number:
        raise CapwrightError(
            f"{number} pictures to learn from, of which {kept} choose the ensemble weight: none "
            "are left; take more pictures or a smaller validation share"
        )
    return Scene(
        config=config,
        seed=seed,
        encoder=encoder,
        split=split_of(config.dataset, train.classes, config.unseen),
        vocabulary=vocabulary_of(config.words, train, config.data),
        train=train,
        learned=tuple(range(number - kept)),
        validation=tuple(range(number - kept, number)),
        test=test,
        tested=tuple(range(min(len(test), config.test_pictures or len(test)))),
        device=device,
    )


def _pictures(config: Config, folder: Path, split: str | None) -> SegmentationSet:
    pictures = datasets.load(config.dataset, folder, split)
    if not isinstance(pictures, SegmentationSet):
        raise CapwrightError(
            f"{config.dataset} has no class at every pixel: choose a set for segmentation, such as "
            "coco-stuff or pascal-voc20"
        )
    return pictures


def texts_of(scene: Scene, arm: str) -> Tensor:
    """Class vectors [C, E] of an arm: the written prompts', or the learned ones'."""
    config, encoder = scene.config, scene.encoder
    if arm in (ONE_STAGE, FIXED):
        return fixed_texts(encoder, scene.vocabulary, config.templates)
    folder = scene.folder / "prompts"
    texts = PrefixedTexts(encoder, config.prompts.vectors, seed=scene.seed)
    crops = seen_crops(
        encoder, scene.train, scene.learned, scene.split, config.prompts,
        folder=folder, seed=scene.seed,
    )  # fmt: skip
    scale = float(encoder.model.logit_scale.detach().exp())
    learn(
        texts, scene.vocabulary, scene.split.seen, crops, scale, config.prompts,
        folder=folder, seed=scene.seed,
    )  # fmt: skip
    with torch.no_grad():
        return class_vectors(texts(scene.vocabulary.names), scene.vocabulary)


def _one_stage(scene: Scene, folder: Path) -> tuple[dict[str, float | None], Outcomes]:
    config = scene.config
    texts_CE = texts_of(scene, ONE_STAGE)
    backbone = load_backbone(config.checkpoint, model=config.model, seed=scene.seed)
    network = PixelClassifier(backbone, texts_CE.shape[1])
    learner = learners.PixelClassifierLearner(network, texts_CE[list(scene.split.seen)])
    _fit(scene, learner, scene.split.seen, scene.train, config.baseline, folder)

    def answered(item: SegmentationItem) -> Labelled:
        side = config.views.test_short_side
        return item, {
            "": one_stage_labels(
                network, item, texts_CE, short_side=side, precision=config.precision
            )
        }

    items = in_order(scene.test.__getitem__, scene.tested, ahead=8)
    counts = count(map(answered, items), scene, len(scene.tested), "test, one stage")
    return split_metrics(counts[""].confusion_CC, scene.split), outcomes_of(scene, counts[""])


def _two_stages(scene: Scene, arm: str, folder: Path) -> tuple[dict[str, float | None], Outcomes]:
    config = scene.config
    texts_CE = texts_of(scene, arm)
    network = ProposalNetwork(config.proposals, texts_CE.shape[1])
    if arm != SELF_TRAINED and not (folder / STATE).exists():
        network.load_backbone()
    segmenter = Segmenter(
        network.to(scene.device), scene.encoder, texts_CE,
        short_side=config.views.test_short_side, settings=config.inference,
    )  # fmt: skip
    if arm == SELF_TRAINED:
        taught: Sequence[int] = range(len(scene.split.classes))
        pictures = _pseudo_labelled(scene, segmenter, folder)
        schedule = config.self_training
    else:
        taught, pictures, schedule = scene.split.seen, scene.train, config.schedule
    learner = learners.ProposalLearner(network, texts_CE[list(taught)], config.losses)
    _fit(scene, learner, taught, pictures, schedule, folder)
    return _tested(scene, segmenter)


def _pseudo_labelled(scene: Scene, segmenter: Segmenter, folder: Path) -> SegmentationSet:
    """Load what the arm with learned prompts learned, and label the training pictures by it."""
    config = scene.config
    state = torch.load(scene.folder / LEARNED / STATE, weights_only=True, map_location=scene.device)
    segmenter.network.load_state_dict(state["module"])
    exponent_C = readings(_seen(scene), [config.weight])[f"w={config.weight:g}"]
    labels = folder / "labels"
    self_training.write_pseudo_labels(
        segmenter, scene.train, scene.learned, scene.split, exponent_C, labels
    )
    found = self_training.with_pseudo_labels(scene.train, labels)
    assert isinstance(found, SegmentationSet)
    return found


def _fit(
    scene: Scene,
    learner: Any,
    taught: Sequence[int],
    pictures: SegmentationSet,
    schedule: Schedule,
    folder: Path,
) -> None:
    config = scene.config
    view = learners.TaughtView(
        taught=tuple(taught), classes=len(scene.split.classes), views=config.views
    )
    fit(
        learner, pictures, scene.learned, schedule, folder=folder, seed=scene.seed, view=view,
        save_every=config.save_every, workers=config.loader_workers, precision=config.precision,
        device=scene.device, label=f"{folder.name}, seed {scene.seed}",
    )  # fmt: skip


def _tested(scene: Scene, segmenter: Segmenter) -> tuple[dict[str, float | None], Outcomes]:
    """The metrics at the weight that is best on the validation part; others beside them."""
    config = scene.config
    tried = readings(_seen(scene), config.weights)
    found = answers(segmenter, scene.train, scene.validation, tried)
    validation = _metrics(count(found, scene, len(scene.validation), "validation"), scene)
    weight = best_weight(config.weights, validation, config.weight)
    chosen = readings(_seen(scene), [weight, config.weight])
    found = answers(segmenter, scene.test, scene.tested, chosen)
    counts = count(found, scene, len(scene.tested), "test")
    tested = _metrics(counts, scene)
    return metrics_of(tested, validation, weight, config.weight), outcomes_of(
        scene, counts[reading(weight)]
    )


def best_weight(weights: Sequence[float], validation: Mapping[str, Metrics], usual: float) -> float:
    """The weight of the largest hIoU; of equals (no unseen class, say) the one next to `usual`."""
    return max(weights, key=lambda w: (validation[reading(w)]["hiou"] or 0.0, -abs(w - usual)))


def metrics_of(
    tested: Mapping[str, Metrics],
    validation: Mapping[str, Metrics],
    weight: float,
    usual: float,
) -> Metrics:
    """The headline at `weight`; beside it `test/...` at the usual weight and of each opinion alone,
    and `validation/...`. The names do not depend on `weight`, so that seeds have a mean.
    """
    beside = {n: found for n, found in tested.items() if n in (reading(usual), PROPOSALS, CLIP)}
    headline = {**tested[reading(weight)], "weight": weight}
    return headline | _named("test", beside) | _named("validation", validation)


def _metrics(counts: Mapping[str, Counts], scene: Scene) -> dict[str, Metrics]:
    return {name: split_metrics(each.confusion_CC, scene.split) for name, each in counts.items()}


def count(answered: Iterable[Labelled], scene: Scene, total: int, label: str) -> dict[str, Counts]:
    """Right and wrong pixels by reading."""
    found: dict[str, Counts] = {}
    with Progress(label, total, "pictures") as progress:
        for item, labels in answered:
            for name, labels_HW in labels.items():
                counts = found.setdefault(name, Counts(len(scene.split.classes)))
                counts.add(labels_HW, item.seg_HW)
            progress.advance()
    return found


def outcomes_of(scene: Scene, counts: Counts) -> Outcomes:
    """`miou_seen` and `miou_unseen` as parts and wholes of every picture."""
    whole = counts.outcomes([scene.test.keys[number] for number in scene.tested])
    miou = whole.metrics["miou"]
    kinds = {"miou_seen": list(scene.split.seen), "miou_unseen": list(scene.split.unseen)}
    metrics = {
        name: Outcome(part=miou.part[:, chosen], whole=miou.whole[:, chosen])
        for name, chosen in kinds.items()
    }
    return Outcomes(keys=whole.keys, metrics=metrics)


def _named(part: str, readings: Mapping[str, Metrics]) -> Metrics:
    return {
        f"{part}/{one}/{name}": value
        for one, metrics in readings.items()
        for name, value in metrics.items()
        if name != "miou"
    }


def _seen(scene: Scene) -> Tensor:
    return torch.from_numpy(scene.split.is_seen_C).to(scene.device)
