"""A run of MUST from a checkpoint and a folder of pictures to an adapted model with its numbers.

Reads a checkpoint and a set for classification: pictures without their labels from `train_split`,
pictures with labels, for measuring alone, from `test_split`. Writes OUT/manifest.json, state.pt,
metrics.jsonl, tests.json (the accuracy at every measurement), the folders OUT/last and OUT/best (an
open_clip checkpoint with the adapted image tower, beside it classifier.safetensors and
classes.json), and at the end results.json with results.npz (before, last, best). What is adapted is
the teacher.

Shapes: B pictures, S pixels a side, N pictures of the test, C classes, E embedding.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from safetensors.torch import save_file
from torch import Tensor

from capwright.adapt.must.config import Config
from capwright.adapt.must.masks import square_side
from capwright.adapt.must.student import Student
from capwright.adapt.must.training import Pair, Trainer, plan_of
from capwright.adapt.must.views import RankBatches, ViewMaker
from capwright.core.errors import CapwrightError
from capwright.core.files import atomic_path, read_json, write_json
from capwright.core.reading import in_batches, in_order
from capwright.core.run_folder import claim
from capwright.datasets import load
from capwright.datasets.sets import ClassificationItem, ClassificationSet, require_same_classes
from capwright.dense.vit import open_up
from capwright.evaluate.classification import class_vectors
from capwright.evaluate.embeddings import Embeddings
from capwright.evaluate.encoder import Encoder, load_encoder
from capwright.evaluate.outcomes import Outcomes, read_outcomes, write_outcomes
from capwright.evaluate.results import Protocol, Result, code_revision, write_results
from capwright.evaluate.transfer.classification import measure as metrics_of
from capwright.evaluate.transfer.vectors import check_label
from capwright.evaluate.zero_shot import templates_of
from capwright.export import open_clip_folder
from capwright.export.source import Source, load_source
from capwright.models.devices import pick_device
from capwright.pretrain.distributed import ALONE, Group, barrier, join
from capwright.pretrain.precision import arithmetic

PROTOCOL = Protocol(name="must", version="v1")
RESULTS, TESTS = "results.json", "tests.json"
STAGES = ("before", "last", "best")
TESTED = 64  # pictures of one pass of the test
Metrics = Mapping[str, float | None]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The metrics of the test: of the words alone, at the end, and where acc1 was best.

    `best` is chosen by the labels of the test, so it flatters; `last` does not.
    """

    before: Metrics
    last: Metrics
    best: Metrics
    best_step: int
    steps: int
    out: Path


def run(config: Config) -> Summary:
    """Adapt and measure; a run that is there goes on, one that is done is only read.

    Raises CapwrightError for a tower without patches to hide, a set of one class, labels that the
    list of classes does not have, and an `out` that holds a run of another plan.
    """
    with join() as group:
        if group.leads:
            claim(config.out, plan_of(config))
        barrier(group)
        if not (config.out / RESULTS).exists():
            Adaptation(config, group).run()
        return _summary(config.out)


class Adaptation:
    """A run's model and pictures."""

    def __init__(self, config: Config, group: Group = ALONE) -> None:
        self.config, self.group = config, group
        self.device = pick_device(config.device)
        self.train = _classification(config, config.train_split)
        self.test = _classification(config, config.test_split)
        require_same_classes(self.train, self.test)
        self.encoder = load_encoder(config.checkpoint)
        self.size = config.image_size or self.encoder.image_size
        self.pair = self._pair().to(self.device)
        preprocess = dict(self.encoder.model.visual.preprocess_cfg) | {"size": self.size}
        self.preprocess: Callable[[Any], Tensor] = image_transform_v2(
            PreprocessCfg(**preprocess), is_train=False
        )

    def _pair(self) -> Pair:
        config, model = self.config, self.encoder.model
        self.grid = _grid(model.visual, self.size)
        patch = self.size // self.grid[0]
        masks = config.weights.masks
        self.square = square_side(config.mask_patch, patch) if masks else 1
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            student = Student(
                copy.deepcopy(model.visual).requires_grad_(True).float(),
                words(self.encoder, self.train, config),
                config.scale or float(model.logit_scale.detach().exp()),
                masks=masks,
                patch=patch if config.weights.masked_image else None,
            )
        return Pair(student)

    def run(self) -> None:
        """Measure, train, write."""
        config = self.config
        maker = ViewMaker(config=config, size=self.size, grid=self.grid, square=self.square)
        source = RankBatches(
            self.train, range(len(self.train)), config.batch, config.seed, maker, group=self.group
        )
        trainer = Trainer(self.pair, source, self.encoder.normalised, config, self.group)
        if "0" not in _tests(config.out):
            self.measure(0)
        trainer.run(self.measure)
        if self.group.leads:
            self.write_model("last")
            self.write_results()
        barrier(self.group)

    def measure(self, done: int) -> None:
        """Test the teacher after `done` steps; the one that leads does it, the others wait."""
        if self.group.leads:
            metrics, outcomes = accuracy(self)
            before = {k: v for k, v in _tests(self.config.out).items() if int(k) < done}
            tests = before | {str(done): metrics}
            best = _best(tests) == done
            if done and best:
                self.write_model("best")
            for stage, right in zip(STAGES, (done == 0, True, best), strict=True):
                if right:
                    write_outcomes(self._outcomes(stage), [outcomes])
            write_json(self.config.out / TESTS, tests)
        barrier(self.group)

    @cached_property
    def source(self) -> Source:
        """The checkpoint with its text tower, to write the adapted image tower into."""
        return load_source(str(self.config.checkpoint))

    def write_model(self, name: str) -> None:
        """The teacher as a checkpoint, with its classifier."""
        teacher = self.pair.teacher
        source = self.source
        source.model.visual.load_state_dict(teacher.visual.state_dict())
        with atomic_path(self.config.out / name) as folder:
            folder.mkdir()
            open_clip_folder.store(source, folder)
            classifier = teacher.classifier.detach().cpu().contiguous()
            save_file({"classifier": classifier}, folder / "classifier.safetensors")
            listed = {"classes": list(self.train.classes), "scale": teacher.scale}
            listed |= {"image_size": self.size}  # that it was adapted and tested at
            write_json(folder / "classes.json", listed)

    def write_results(self) -> None:
        """The three stages with each picture's hits."""
        out, tests = self.config.out, _tests(self.config.out)
        outcomes = [read_outcomes(self._outcomes(stage))[0] for stage in STAGES]
        write_outcomes(out / "results.npz", outcomes)
        steps = (0, max(map(int, tests)), _best(tests))
        results = [self._result(*one, tests) for one in zip(STAGES, steps, strict=True)]
        write_results(out / RESULTS, results)

    def _outcomes(self, stage: str) -> Path:
        return self.config.out / "outcomes" / f"{stage}.npz"

    def _result(self, stage: str, step: int, tests: Mapping[str, Metrics]) -> Result:
        return Result(
            dataset=f"{self.test.name}/{self.config.test_split}",
            model=self.encoder.name,
            pretrained=self.encoder.pretrained,
            task="adapted_classification",
            metrics=tests[str(step)],
            protocol=PROTOCOL,
            seed=self.config.seed,
            samples_seen=self.encoder.samples_seen,
            code_revision=code_revision(),
            options={"stage": stage, "weights": self.config.weights},
        )


def _tests(out: Path) -> dict[str, Metrics]:
    """Metrics by the number of steps before them."""
    return dict(read_json(out / TESTS)) if (out / TESTS).exists() else {}


def _summary(out: Path) -> Summary:
    tests = _tests(out)
    steps, best = max(map(int, tests)), _best(tests)
    return Summary(
        before=tests["0"], last=tests[str(steps)], best=tests[str(best)],
        best_step=best, steps=steps, out=out,
    )  # fmt: skip


@torch.no_grad()
def accuracy(run: Adaptation) -> tuple[dict[str, float | None], Outcomes]:
    """Metrics and hits of the teacher over the test, one centre crop a picture."""
    teacher, test = run.pair.teacher.eval(), run.test

    def ready(number: int) -> tuple[Tensor, ClassificationItem]:
        item = test[number]
        check_label(item, test)
        return run.preprocess(item.image.convert("RGB")), item

    scores, labels, keys = [], [], []
    for part in in_batches(in_order(ready, range(len(test)), ahead=2 * TESTED), TESTED):
        with arithmetic(run.config.precision, run.device):
            seen = teacher(torch.stack([pixels for pixels, _ in part]).to(run.device))
        scores.append(seen.logits_BC.cpu())
        labels += [item.label for _, item in part]
        keys += [item.key for _, item in part]
    return metrics_of(keys, torch.cat(scores), torch.tensor(labels))


def words(encoder: Encoder, pictures: ClassificationSet, config: Config) -> Tensor:
    """The classifier before adaptation, unit vectors [C, E]; `a|b` are two names of one class."""
    names = [name.split("|") for name in pictures.classes]
    return class_vectors(Embeddings(encoder), names, templates_of(pictures, config.templates))


def _best(tests: Mapping[str, Metrics]) -> int:
    """The step after which acc1 was best; the first of equals, and not before the first step."""
    steps = sorted(int(step) for step in tests if step != "0") or [0]
    return max(steps, key=lambda step: (tests[str(step)]["acc1"] or 0.0, -step))


def _classification(config: Config, split: str) -> ClassificationSet:
    pictures = load(config.dataset, config.data, split)
    if not isinstance(pictures, ClassificationSet):
        raise CapwrightError(
            f"{config.dataset} is no set for classification: choose imagenet (any folder with one "
            "folder a class) or webdataset"
        )
    if len(pictures.classes) < 2:
        raise CapwrightError(
            f"{config.data} has {len(pictures.classes)} class: a picture needs at least two to "
            "choose from"
        )
    return pictures


@torch.no_grad()
def _grid(visual: Any, size: int) -> tuple[int, int]:
    """Patches down and across of a square picture; CapwrightError for a tower without patches."""
    parameter = next(visual.parameters())
    blank = torch.zeros(1, 3, size, size, device=parameter.device, dtype=parameter.dtype)
    return open_up(visual).embed(blank)[1]
