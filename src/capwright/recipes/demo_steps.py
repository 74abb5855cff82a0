"""The steps of the demo: each builds the configuration of a stage from the demo's dials and runs
it.

Reads and writes below the demo's OUT folder; every stage resumes by itself.
"""

from dataclasses import replace
from pathlib import Path

from capwright.captions import select
from capwright.captions.describe import small
from capwright.captions.fuse import rules
from capwright.captions.runner import missing_shards, stage_folder
from capwright.captions.score import clip
from capwright.core.files import write_json
from capwright.corpus.index import IndexConfig, load_index
from capwright.corpus.index import run as run_index
from capwright.corpus.pictures import load_pixels
from capwright.datasets.scenes import SceneConfig
from capwright.datasets.scenes import run as run_scenes
from capwright.evaluate import classification, dense_probe, retrieval
from capwright.evaluate.dense_training import ProbeRecipe, Schedule
from capwright.pretrain import engine
from capwright.pretrain.config import CaptionSource, PretrainConfig
from capwright.recipes import demo_evidence
from capwright.recipes.demo import SPLITS, DemoConfig
from capwright.report import page


def scenes(config: DemoConfig) -> None:
    """Compose the pictures to caption, the labelled ones for the probes and two test splits."""
    counts = {"train": config.pictures, "probe": config.labelled}
    counts |= dict.fromkeys(SPLITS, config.tested)
    for number, (name, count) in enumerate(counts.items()):
        folder = config.out / "scenes" / name
        run_scenes(
            SceneConfig(
                out=folder,
                count=count,
                size=config.picture_size,
                seed=1000 * config.seed + number,
                cutouts=config.cutouts,
                per_class=config.per_class,
                human_fraction=config.human_fraction,
                holdout=name == "unseen",
            )
        )
        run_index(IndexConfig(corpus=str(folder), work=config.out / "work" / name))


def prepare(config: DemoConfig) -> None:
    """All that studies need before they pretrain: scenes, captions, decoded pictures."""
    scenes(config)
    if missing_shards(config.work, stage_folder(config.work, "select")):
        describe(config)
        choose(config)
    load_pixels(load_index(config.work), size=64, cache=config.work / "pixels")


def describe(config: DemoConfig) -> None:
    """Cache the trunk's features, train the small captioner and describe every picture."""
    chosen = small.DescribeConfig(
        work=config.work, picture_size=config.picture_size, seed=config.seed
    )
    if config.quick:
        chosen = replace(
            chosen,
            concepts=replace(chosen.concepts, steps=60),
            training=replace(chosen.training, noisy_steps=40, human_steps=40),
            writing=replace(chosen.writing, sampled=1),
        )
    small.run(chosen)


def choose(config: DemoConfig) -> None:
    """Fuse alt text and description, score every candidate, select per picture."""
    size = config.picture_size
    rules.run(rules.FuseConfig(work=config.work, picture_size=size))
    clip.run(clip.ScoreConfig(work=config.work, picture_size=size, seed=config.seed))
    select.run(select.SelectConfig(work=config.work))


def pretrain(config: DemoConfig, arm: str) -> None:
    """Pretrain one arm."""
    engine.run(pretrain_plan(config, arm))


def pretrain_plan(config: DemoConfig, arm: str) -> PretrainConfig:
    """Arms differ in their captions (or, for mae, in the objective) alone."""
    sources = {
        "quality": CaptionSource(name="selected", folder=config.work / "captions" / "select"),
        "oracle": CaptionSource(name="oracle", folder=config.out / "scenes" / "train" / "oracle"),
    }
    return PretrainConfig(
        out=config.out / "arms" / arm,
        work=config.work,
        captions=(sources.get(arm, CaptionSource(name="alt")),),
        objectives={"masked_autoencoder" if arm == "mae" else "contrastive": 1.0},
        samples=config.samples,
        warmup_samples=config.samples // 15,
        batch_size=config.batch,
        seed=config.seed,
    )


def evaluate(config: DemoConfig, arm: str) -> None:
    """Dense probes on both splits, retrieval and zero-shot classification on the seen one."""
    folder, work = config.out / "arms" / arm, config.out / "work"
    checkpoint: Path | None = None if arm == "scratch" else folder
    seeds = tuple(range(config.probe_seeds))
    if not (folder / "dense.json").exists():
        dense_probe.run(
            dense_probe.DenseProbeConfig(
                checkpoint=checkpoint,
                train=work / "probe",
                tests={split: work / split for split in SPLITS},
                out=folder / "dense.json",
                seeds=seeds,
                finetuned_seeds=seeds[:1],
                recipe=probe_recipe(config),
            )
        )
    seen = work / "seen"
    if not (folder / "retrieval.json").exists():
        retrieval.run(
            retrieval.RetrievalConfig(
                checkpoint=checkpoint, data=seen, out=folder / "retrieval.json", seed=config.seed
            )
        )
    if not (folder / "classification.json").exists():
        classification.run(
            classification.ClassificationConfig(
                checkpoint=checkpoint,
                data=seen,
                out=folder / "classification.json",
                seed=config.seed,
            )
        )


def probe_recipe(config: DemoConfig) -> ProbeRecipe:
    """dense-probe/v1, or for a quick demo a shorter probe under another version."""
    if not config.quick:
        return ProbeRecipe(train_samples=config.labelled, test_samples=config.tested)
    short = Schedule(
        samples=250, batch=25, learning_rate=1e-3, encoder_learning_rate=3e-4, layer_decay=0.75
    )
    return ProbeRecipe(
        train_samples=config.labelled,
        test_samples=config.tested,
        views=1,
        frozen=Schedule(samples=800, batch=50, learning_rate=3e-3),
        finetuned=short,
        from_scratch=short,
    )


def report(config: DemoConfig) -> None:
    """Write results.json, the report's data and the page."""
    write_json(config.out / "results.json", demo_evidence.results(config))
    demo_evidence.write_report_data(config)
    page.run(page.ReportConfig(run=config.out))
