"""Does the caption quality index rank corpora as pretraining on them does?

Composes scenes once, writes captions that are worse by known amounts and in different ways
(`graded_captions.py`: nine corpora of the same pictures, stated there before any was measured),
takes the index of each, then pretrains one CLIP on each with the demo's recipe and probes the
frozen encoder by dense-probe/v1. Prints a table and Spearman's rank correlation of index and mIoU.

    python -m capwright.recipes.validate_quality_index --out runs/cqi

Reads nothing but the cut-outs. Writes OUT/scenes, OUT/work, OUT/arms/CORPUS, OUT/results.json and
OUT/results.md. Every step is skipped when its output is there. About 25 minutes on two
cores without fast bfloat16.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from capwright.captions.quality_index import VERSION, QualityConfig
from capwright.core.config import as_dict, override
from capwright.core.errors import CapwrightError
from capwright.core.files import atomic_path, read_json, write_json
from capwright.core.processes import fresh_processes
from capwright.core.run_folder import claim, versions
from capwright.recipes.graded_captions import CORPORA, SceneTexts, degrade, things_of

TARGET = 0.9


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """The dials of the validation."""

    out: Path
    """Folder to write."""
    corpora: tuple[str, ...] = tuple(CORPORA)
    """Which of CORPORA are measured."""
    cutouts: Path | None = None
    """RGBA pictures with captions; None fetches the default ones."""
    per_class: int = 5
    """Cut-outs a class, a quarter of them held out."""
    pictures: int = 4000
    """Scenes that are captioned and pretrained on."""
    labelled: int = 500
    """Scenes with labels for the probes."""
    tested: int = 300
    """Scenes that the probes are tested on."""
    samples: int = 25_600
    """Samples that every encoder sees; a third of the demo's, in smaller steps."""
    batch: int = 64
    """Samples of a step."""
    patch_dropout: float = 0.75
    """Share of the patches left out in pretraining, for the speed."""
    probe_samples: int = 10_000
    """Pictures that the probe's heads see; another number is another protocol than v1."""
    seed: int = 0
    """Of the scenes, the captions, the index, the encoders and the probes: one each."""
    workers: int = 2
    """Corpora at once, a processor core each."""
    quality: QualityConfig = field(default_factory=QualityConfig)
    """How the index is measured."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.corpora if name not in CORPORA]
        if unknown:
            raise CapwrightError(
                f"corpus {unknown[0]!r} is unknown: allowed are {', '.join(CORPORA)}"
            )
        if len(set(self.corpora)) < 3:
            raise CapwrightError(
                f"{len(set(self.corpora))} corpora cannot show a ranking: name at least 3"
            )

    @property
    def work(self) -> Path:
        """The work folder of the pictures that are captioned."""
        return self.out / "work" / "train"

    def plan(self) -> dict[str, Any]:
        """What the folder is bound to; the index can be measured again in another way."""
        free = ("out", "corpora", "cutouts", "workers", "quality")
        return {k: v for k, v in as_dict(self).items() if k not in free}


def run(config: ValidationConfig) -> dict[str, Any]:
    """Measure everything that is missing; returns what is in OUT/results.json."""
    claim(config.out, config.plan())
    prepare(config)
    measure = partial(measure_corpus, config)
    if config.workers == 1:
        rows = list(map(measure, config.corpora))
    else:
        with fresh_processes(config.workers) as pool:
            rows = list(pool.map(measure, config.corpora))
    found = {
        "index": VERSION,
        "spearman": spearman([r["index"] for r in rows], [r["miou"] for r in rows]),
        "target": TARGET,
        "corpora": rows,
        "config": as_dict(config),
        "versions": versions(),
    }
    write_json(config.out / "results.json", found)
    with atomic_path(config.out / "results.md") as temporary:
        temporary.write_text(table(found), encoding="utf-8")
    return found


def prepare(config: ValidationConfig) -> None:
    """Scenes, their index, feature maps, decoded pictures and every corpus's captions."""
    from capwright.captions import features
    from capwright.corpus.index import IndexConfig, load_index
    from capwright.corpus.index import run as run_index
    from capwright.corpus.pictures import load_pixels
    from capwright.datasets.scenes import SceneConfig
    from capwright.datasets.scenes import run as run_scenes

    counts = {"train": config.pictures, "probe": config.labelled, "seen": config.tested}
    for number, (name, count) in enumerate(counts.items()):
        folder = config.out / "scenes" / name
        run_scenes(
            SceneConfig(
                out=folder,
                count=count,
                seed=1000 * config.seed + number,
                cutouts=config.cutouts,
                per_class=config.per_class,
                workers=config.workers,
            )
        )
        run_index(IndexConfig(corpus=str(folder), work=config.out / "work" / name))
    size = config.quality.picture_size
    features.run(features.FeaturesConfig(work=config.work, picture_size=size))
    load_pixels(load_index(config.work), size=64, cache=config.work / "pixels")
    write_captions(config)


def write_captions(config: ValidationConfig) -> None:
    """One sidecar a shard and corpus."""
    from capwright.corpus.index import load_index, shard_sizes
    from capwright.corpus.pictures import read_members
    from capwright.corpus.sidecars import captions_of, has_sidecar, write_sidecar

    sizes = shard_sizes(config.work)
    last = list(sizes)[-1]
    missing = [c for c in config.corpora if not has_sidecar(captions_folder(config, c), last)]
    if not missing:
        return
    index = load_index(config.work)
    oracle = captions_of(index, config.out / "scenes" / "train" / "oracle")
    texts = SceneTexts(
        oracle=[captions[0] for captions in oracle],
        alt=index["text"].to_pylist(),
        things=[things_of(boxes) for boxes in read_members(index, "boxes.json")],
    )
    keys = index["key"].to_pylist()
    for corpus in missing:
        captions = degrade(texts, corpus, config.seed)
        first = 0
        for shard, size in sizes.items():
            rows = [
                {"key": keys[i], "source": corpus, "text": captions[i], "seed": config.seed}
                for i in range(first, first + size)
            ]
            write_sidecar(captions_folder(config, corpus), shard, rows)
            first += size


def captions_folder(config: ValidationConfig, corpus: str) -> Path:
    """Where the captions of a corpus lie."""
    return config.work / "captions" / f"graded-{corpus}"


def measure_corpus(config: ValidationConfig, corpus: str) -> dict[str, Any]:
    """The index of one corpus, then what its captions buy."""
    import torch

    if config.workers > 1:
        torch.set_num_threads(1)
    quality = _quality(config, corpus)
    return {"corpus": corpus, **quality, "miou": _dense_miou(config, corpus)}


def _quality(config: ValidationConfig, corpus: str) -> dict[str, Any]:
    from capwright.captions.sampled_pairs import source_quality

    path = config.out / "arms" / corpus / "quality.json"
    plan = {"version": VERSION, **as_dict(config.quality)}
    if path.exists() and read_json(path)["plan"] == plan:
        return dict(read_json(path)["found"])
    measured = source_quality(config.work, captions_folder(config, corpus), config.quality)
    if measured.quality.index is None:
        raise CapwrightError(
            f"corpus {corpus!r} has no index: {measured.quality.why_not}; make more pictures or "
            "lower quality.contrast"
        )
    found = as_dict(replace(measured.quality, pair_bits=())) | {"coverage": measured.coverage}
    write_json(path, {"plan": plan, "found": found})
    return dict(found)


def _dense_miou(config: ValidationConfig, corpus: str) -> float:
    from capwright.evaluate import dense_probe
    from capwright.evaluate.results import read_results
    from capwright.pretrain import engine
    from capwright.pretrain.config import CaptionSource, PretrainConfig

    folder = config.out / "arms" / corpus
    if not (folder / "dense.json").exists():
        engine.run(
            PretrainConfig(
                out=folder / "clip",
                work=config.work,
                captions=(CaptionSource(name=corpus, folder=captions_folder(config, corpus)),),
                samples=config.samples,
                warmup_samples=config.samples // 15,
                batch_size=config.batch,
                patch_dropout=config.patch_dropout,
                seed=config.seed,
            )
        )
        dense_probe.run(
            dense_probe.DenseProbeConfig(
                checkpoint=folder / "clip",
                train=config.out / "work" / "probe",
                tests={"seen": config.out / "work" / "seen"},
                out=folder / "dense.json",
                modes=("frozen",),
                seeds=(config.seed,),
                recipe=_probe_recipe(config),
            )
        )
    miou = dense_probe.headline(read_results(folder / "dense.json"), "frozen")["miou"]
    assert miou is not None
    return miou


def _probe_recipe(config: ValidationConfig) -> Any:
    from capwright.evaluate.dense_training import ProbeRecipe

    recipe = ProbeRecipe(train_samples=config.labelled, test_samples=config.tested)
    return replace(recipe, frozen=replace(recipe.frozen, samples=config.probe_samples))


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's rank correlation, ties at their mean rank."""
    from scipy.stats import spearmanr

    return float(spearmanr(one, other).statistic)


def table(found: dict[str, Any]) -> str:
    """The results in Markdown, best index first."""
    lines = [
        "| corpus | index | bits a pair | coverage | mIoU, % |",
        "|---|---|---|---|---|",
    ]
    for row in sorted(found["corpora"], key=lambda row: -row["index"]):
        lines.append(
            f"| {row['corpus']} | {row['index']:.1f} ± {row['error95']:.1f} | {row['bits']:.2f} "
            f"| {row['coverage']:.0%} | {100 * row['miou']:.1f} |"
        )
    lines += ["", f"Spearman {found['spearman']:.3f} (target {found['target']:g})", ""]
    return "\n".join(lines)


@click.command(context_settings={"show_default": True})
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@click.option("--corpora", default=",".join(CORPORA), help="Which corpora, with commas.")
@click.option("--cutouts", type=click.Path(path_type=Path), help="Your own RGBA cut-outs.")
@click.option("--set", "settings", multiple=True, metavar="A.B=VALUE", help="Change a field.")
def command(out: Path, corpora: str, cutouts: Path | None, settings: tuple[str, ...]) -> None:
    """Validate the caption quality index against dense mIoU after pretraining."""
    names = tuple(name.strip() for name in corpora.split(",") if name.strip())
    found = run(override(ValidationConfig(out=out, corpora=names, cutouts=cutouts), settings))
    click.echo(table(found))
    click.echo(json.dumps({"spearman": found["spearman"], "ok": found["spearman"] >= TARGET}))


if __name__ == "__main__":
    # classes of __main__ have another name in worker processes
    from capwright.recipes.validate_quality_index import command as main

    main()
