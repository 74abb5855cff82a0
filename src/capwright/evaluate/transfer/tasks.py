"""Each task as one function: a run in, for every test split its metrics and outcomes out."""

from collections.abc import Callable, Mapping

from capwright.datasets.sets import ClassificationSet, require_same_classes
from capwright.dense.backbone import Backbone
from capwright.evaluate.results import Protocol
from capwright.evaluate.transfer import (
    classification,
    depth,
    detection,
    nearest_patches,
    normals,
    segmentation,
)
from capwright.evaluate.transfer.config import SCRATCH
from capwright.evaluate.transfer.finetune_classifier import Classifier, ClassifierLearner
from capwright.evaluate.transfer.pixel_values import PixelLearner, require_known
from capwright.evaluate.transfer.run import Measured, Run
from capwright.evaluate.transfer.vectors import VectorStore


def segment(run: Run) -> dict[str, Measured]:
    """Segmentation with any head."""
    settings, train = run.config.segmentation, run.train
    for test in run.tests.values():
        require_same_classes(train, test)
    backbone = run.backbone(settings.depths)
    if settings.head == "knn":
        model = nearest_patches.build(backbone, settings, train, run.numbers, run.seed)
    else:
        segmentation.require_batches(settings, run.config.schedule_used.batch)
        with run.seeded():
            model = segmentation.build(backbone, settings, len(train.classes))
        weight_C = segmentation.class_weights(train, run.numbers, settings.class_balance)
        learner = segmentation.SegmentationLearner(model, settings, weight_C)
        run.fit(learner, learner.view)
    return run.each_split(lambda test, chosen: segmentation.measure(model, test, chosen, settings))


def predict_depth(run: Run) -> dict[str, Measured]:
    """Depth with any head."""
    settings = run.config.depth
    caps = depth.scoring(settings, run.train)
    quantity = depth.quantity(settings, caps)
    require_known(run.train, run.numbers, quantity)
    backbone = run.backbone(settings.depths if settings.head == "glp" else "last")
    with run.seeded():
        model = depth.build(backbone, settings, caps)
    learner = PixelLearner(model, quantity, settings.views)
    run.fit(learner, learner.view)
    return run.each_split(lambda test, chosen: depth.measure(model, test, chosen, settings))


def predict_normals(run: Run) -> dict[str, Measured]:
    """Surface normals with any head."""
    settings = run.config.normals
    require_known(run.train, run.numbers, normals.QUANTITY)
    backbone = run.backbone()
    with run.seeded():
        model = normals.build(backbone, settings)
    learner = PixelLearner(model, normals.QUANTITY, settings.views)
    run.fit(learner, learner.view)
    return run.each_split(lambda test, chosen: normals.measure(model, test, chosen, settings))


def classify(run: Run) -> dict[str, Measured]:
    """Classification by a linear probe, by neighbours or by fine-tuning."""
    settings, train = run.config.classification, run.train
    for test in run.tests.values():
        require_same_classes(train, test)
    if train.labels:
        classification.require_every_class(train.labels, train)
    backbone = run.backbone()
    if settings.method == "finetune":
        with run.seeded():
            model = Classifier(backbone, len(train.classes), settings.vectors.kind)
        side = settings.vectors.side(backbone)
        learner = ClassifierLearner(model, train, settings.fine_tuning, side)
        run.fit(learner, learner.view)
        return run.each_split(
            lambda test, chosen: classification.measure(
                [test.keys[number] for number in chosen],
                *classification.classifier_scores(model, test, chosen, settings),
            )
        )
    backbone.freeze()
    vectors = _store(run, backbone, train, run.config.train_split)
    found = {}
    for split, test in run.tests.items():
        chosen = run.split_numbers[split]
        scores_NK, labels_N = classification.frozen_scores(
            vectors, run.numbers, _store(run, backbone, test, split), chosen, settings, run.seed
        )
        keys = [test.keys[number] for number in chosen]
        found[split] = classification.measure(keys, scores_NK, labels_N)
    return found


def detect(run: Run) -> dict[str, Measured]:
    """Boxes and masks by Mask R-CNN."""
    settings, train = run.config.detection, run.train
    for test in run.tests.values():
        require_same_classes(train, test)
    detection.require_objects(train, run.numbers)
    backbone = run.backbone()
    with run.seeded():
        model = detection.build(backbone, settings, len(train.classes))
    learner = detection.DetectionLearner(model, settings, len(train.classes))
    run.fit(learner, learner.view)
    return run.each_split(lambda test, chosen: detection.measure(model, test, chosen, settings))


def _store(run: Run, backbone: Backbone, pictures: ClassificationSet, split: str) -> VectorStore:
    fresh = f", weights of seed {run.seed}" if run.config.checkpoint == SCRATCH else ""
    settings = run.config.classification
    return VectorStore(
        backbone,
        pictures,
        run.config.out / "vectors",
        settings.vectors,
        source=f"{run.config.data}, {split}{fresh}",
        batch=settings.batch,
    )


TASKS: Mapping[str, tuple[Protocol, Callable[[Run], dict[str, Measured]]]] = {
    "segmentation": (segmentation.PROTOCOL, segment),
    "depth": (depth.PROTOCOL, predict_depth),
    "normals": (normals.PROTOCOL, predict_normals),
    "classification": (classification.PROTOCOL, classify),
    "detection": (detection.PROTOCOL, detect),
}
