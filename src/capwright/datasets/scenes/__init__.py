"""Scenes: labelled pictures with noisy alt text, composed from photographs of single things.

Reads cut-outs (RGBA pictures with a caption): the default ones are fetched, or --cutouts FOLDER.
Writes DIR/00000.tar ... (a WebDataset as img2dataset's, with .seg.png, .depth.npy and .boxes.json
beside each picture), DIR/classes.json and DIR/oracle/*.parquet (what a person would have written).

    capwright scenes --out data/scenes --count 8000 --size 128 --seed 0

Scene i of seed s is a function of (s, i) and the settings alone: neither the number of processes
nor an interruption changes a byte. A finished tar is not made again.
"""

import time
from concurrent.futures import as_completed
from dataclasses import dataclass
from pathlib import Path

from capwright.core.config import as_dict, digest
from capwright.core.errors import CapwrightError
from capwright.core.files import write_json
from capwright.core.processes import fresh_processes
from capwright.core.progress import Progress
from capwright.core.run_folder import claim
from capwright.datasets.scenes.cutouts import MIN_PER_CLASS, CutoutSet, load_cutouts
from capwright.datasets.scenes.write import (
    KEYS_PER_SHARD,
    ShardTask,
    composer_for,
    is_done,
    write_shard,
)

__all__ = ["SceneConfig", "SceneSummary", "run"]


@dataclass(frozen=True, kw_only=True)
class SceneConfig:
    """What to compose, from what, and where to write it."""

    out: Path
    count: int
    size: int = 128  # pixels; pictures are square
    seed: int = 0
    cutouts: Path | None = None  # folder of NAME.png + NAME.txt, sub-folders as classes
    backgrounds: Path | None = None  # folder of photographs
    holdout: bool = False  # use the held-out quarter of each class instead of the rest
    per_class: int | None = None  # cut-outs a class, held-out ones included; None is all
    max_objects: int = 3
    human_fraction: float = 0.04  # of the samples, which carry a "human_caption"
    shard_size: int = 1000  # scenes a tar
    workers: int = 2  # processes; the result is the same for any number

    def __post_init__(self) -> None:
        if self.per_class is not None and self.per_class < MIN_PER_CLASS:
            raise CapwrightError(
                f"per_class is {self.per_class}: a class needs at least {MIN_PER_CLASS} cut-outs, "
                "pass more or leave it out"
            )
        for name, low, high in (
            ("count", 1, 10**8),
            ("size", 32, 2048),
            ("seed", 0, 2**63),
            ("max_objects", 1, 20),
            ("shard_size", 1, KEYS_PER_SHARD),
            ("workers", 1, 1024),
            ("human_fraction", 0, 1),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise CapwrightError(
                    f"{name} is {value}: allowed are {low} to {high}, choose a value in between"
                )


@dataclass(frozen=True, kw_only=True)
class SceneSummary:
    """What was made."""

    out: Path
    scenes: int
    shards: int
    shards_already_there: int
    classes: int
    cutouts_used: int
    cutouts_left_out: dict[str, int]  # reason -> how many
    heights_assumed: tuple[str, ...]  # classes of unknown height, taken as 1 metre
    objects_per_scene: float | None  # over the scenes made now
    seconds: float
    scenes_per_second: float | None


def run(config: SceneConfig) -> SceneSummary:
    """Compose `config.count` scenes into `config.out`; finished tars are kept as they are.

    Raises CapwrightError for unusable cut-outs, or an `out` that holds scenes of other settings.
    """
    began = time.monotonic()
    found = load_cutouts(config.cutouts, config.per_class)
    if config.backgrounds is not None and not config.backgrounds.is_dir():
        raise CapwrightError(
            f"no folder of backgrounds at {config.backgrounds}: "
            "pass --backgrounds FOLDER with photographs, or leave it out"
        )
    claim(config.out, _plan(config, found))
    write_json(config.out / "classes.json", _classes(found))
    tasks = _tasks(config)
    todo = [task for task in tasks if not is_done(task)]
    n_things = _write_all(config, tasks, todo)
    made = sum(task.count for task in todo)
    seconds = time.monotonic() - began
    return SceneSummary(
        out=config.out,
        scenes=config.count,
        shards=len(tasks),
        shards_already_there=len(tasks) - len(todo),
        classes=len(found.classes),
        cutouts_used=len(found.unseen if config.holdout else found.seen),
        cutouts_left_out=found.left_out,
        heights_assumed=found.guessed_heights,
        objects_per_scene=round(n_things / made, 3) if made else None,
        seconds=round(seconds, 2),
        scenes_per_second=round(made / seconds, 1) if made else None,
    )


def _plan(config: SceneConfig, found: CutoutSet) -> dict[str, object]:
    """What the bytes depend on: not where they go, nor how many processes make them."""
    settings = as_dict(config)
    for name in ("out", "workers", "cutouts", "backgrounds"):
        del settings[name]
    classes = digest(_classes(found))
    return {**settings, "cutouts": found.digest, "classes": classes, "backgrounds": _names(config)}


def _names(config: SceneConfig) -> str | None:
    """A digest of the background photographs' names and sizes."""
    if config.backgrounds is None:
        return None
    files = sorted(path for path in config.backgrounds.rglob("*") if path.is_file())
    return digest([[path.name, path.stat().st_size] for path in files])


def _classes(found: CutoutSet) -> dict[str, object]:
    return {"classes": as_dict(found.classes), "background": "background"}


def _tasks(config: SceneConfig) -> list[ShardTask]:
    return [
        ShardTask(
            out=config.out,
            shard=shard,
            first=first,
            count=min(config.shard_size, config.count - first),
            size=config.size,
            seed=config.seed,
            cutouts=config.cutouts,
            backgrounds=config.backgrounds,
            holdout=config.holdout,
            per_class=config.per_class,
            max_objects=config.max_objects,
            human_fraction=config.human_fraction,
        )
        for shard, first in enumerate(range(0, config.count, config.shard_size))
    ]


def _write_all(config: SceneConfig, tasks: list[ShardTask], todo: list[ShardTask]) -> int:
    """Write the missing shards, in this process or several; returns the number of things drawn."""
    n_things = 0
    done = sum(task.count for task in tasks) - sum(task.count for task in todo)
    with Progress("scenes", config.count, "scenes", start=done) as progress:
        if config.workers == 1 or len(todo) < 2:
            composer_for.cache_clear()  # the folder may have changed since another run
            for task in todo:
                n_things += write_shard(task)
                progress.advance(task.count)
            composer_for.cache_clear()
            return n_things
        with fresh_processes(min(config.workers, len(todo))) as pool:
            waiting = {pool.submit(write_shard, task): task for task in todo}
            try:
                for future in as_completed(waiting):
                    n_things += future.result()
                    progress.advance(waiting[future].count)
            except BaseException:
                pool.shutdown(cancel_futures=True)  # do not finish the others first
                raise
    return n_things
