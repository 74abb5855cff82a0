"""`capwright evaluate`: several models on a folder of data sets, or one protocol by its name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

SCRATCH = "scratch"  # stands for a checkpoint: the same tower with fresh weights

PATH = click.Path(path_type=Path)


def _common(function: Callable[..., None]) -> Callable[..., None]:
    """The arguments that every protocol takes."""
    options = (
        click.argument("checkpoint"),
        click.option("--model", default="nano", show_default=True, help="Towers of `scratch`."),
        click.option("--out", type=PATH, required=True, help="Results file (JSON) to write."),
    )
    for option in reversed(options):
        function = option(function)
    return function


class Evaluate(click.Group):
    """`suite` is the subcommand where none is named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read `MODEL... --suite all` as `suite MODEL... --suite all`."""
        if args and args[0] not in (*self.commands, *ctx.help_option_names):
            args = ["suite", *args]
        return super().parse_args(ctx, args)


@click.group(cls=Evaluate, subcommand_metavar="MODEL... --data ROOT --out OUT | PROTOCOL ARGS...")
def command() -> None:
    """Measure models: zero-shot, retrieval, dense probes.

    Example: capwright evaluate runs/a ViT-B-32/openai --suite all --data sets --out results

    measures both models on every data set in the folder `sets` and skips what is done; `capwright
    evaluate suite --help` has the options. A word of dense, retrieval, classification or
    training-free instead measures one checkpoint with one protocol. MODEL is a checkpoint or run
    folder, hf-hub:ORG/REPOSITORY, an open_clip MODEL/TAG, or the word `scratch` for towers with
    fresh weights.
    """


@command.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option(
    "--suite",
    type=click.Choice(["zero-shot", "retrieval", "dense", "all"]),
    default="all",
    show_default=True,
    help="What is measured.",
)
@click.option("--data", type=PATH, required=True, help="Folder of data sets, each in its folder.")
@click.option("--out", type=PATH, required=True, help="Folder of results, one JSON a task.")
@click.option("--samples", type=click.IntRange(min=1), help="First so many pictures; all without.")
@click.option("--seeds", default=1, show_default=True, help="Runs of the dense probe.")
@click.option("--batch", default=64, show_default=True, help="Pictures of one pass.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda; auto takes a GPU.")
@click.option("--model", default="nano", show_default=True, help="Towers of `scratch`.")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change a field of the config."
)
def suite(settings: tuple[str, ...], **options: Any) -> None:
    """Several models on all data sets of a folder; done tasks are skipped.

    The folder has imagenet, flickr30k, coco-captions, ade20k, pascal-voc and so on, sets in
    CLIP_benchmark's WebDataset form, or scenes/{labelled,SPLIT...}.
    """
    from capwright.core.config import override
    from capwright.evaluate.suite import SuiteConfig, run

    _print(run(override(SuiteConfig(**options), settings)))


@command.command()
@_common
@click.option("--train", type=PATH, required=True, help="Labelled scenes to learn from.")
@click.option(
    "--test", "tests", multiple=True, required=True, metavar="SPLIT=SCENES", help="Repeatable."
)
@click.option("--mode", "modes", multiple=True, help="frozen, finetuned; both by default.")
@click.option("--seeds", default=1, show_default=True, help="Runs, with seeds 0, 1, ...")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change a field of the config."
)
def dense(
    checkpoint: str,
    model: str,
    out: Path,
    train: Path,
    tests: tuple[str, ...],
    modes: tuple[str, ...],
    seeds: int,
    settings: tuple[str, ...],
) -> None:
    """Segmentation and depth, frozen and fine-tuned.

    Example: capwright evaluate dense runs/a --train labelled --test seen=seen --out a.json
    """
    from capwright.core.config import override
    from capwright.evaluate.dense_probe import DenseProbeConfig, run
    from capwright.evaluate.dense_training import MODES

    chosen: Any = modes or MODES
    config = DenseProbeConfig(
        checkpoint=_checkpoint(checkpoint),
        model=model,
        train=train,
        tests=_splits(tests),
        out=out,
        modes=chosen,
        headline=chosen[0],
        seeds=tuple(range(seeds)),
    )
    _print(run(override(config, settings)))


@command.command()
@_common
@click.option("--data", type=PATH, required=True, help="Scenes with captions.")
@click.option("--captions", type=PATH, help="Folder of caption sidecars instead of the oracle's.")
@click.option("--samples", type=click.IntRange(min=1), help="First so many pictures; all without.")
@click.option("--split", default="seen", show_default=True, help="Name of the data in the results.")
def retrieval(**options: Any) -> None:
    """Recall at 1, 5 and 10 in both directions."""
    from capwright.evaluate.retrieval import RetrievalConfig, run

    _print(run(RetrievalConfig(**options | {"checkpoint": _checkpoint(options["checkpoint"])})))


@command.command()
@_common
@click.option("--data", type=PATH, required=True, help="Labelled scenes.")
@click.option(
    "--names",
    type=click.Choice(["objects", "classes"]),
    default="objects",
    show_default=True,
    help="Words that stand for a class.",
)
@click.option("--samples", type=click.IntRange(min=1), help="First so many pictures; all without.")
@click.option("--split", default="seen", show_default=True, help="Name of the data in the results.")
def classification(**options: Any) -> None:
    """Zero-shot class of the largest object, from text alone."""
    from capwright.evaluate.classification import ClassificationConfig, run

    _print(
        run(ClassificationConfig(**options | {"checkpoint": _checkpoint(options["checkpoint"])}))
    )


@command.command(name="training-free")
@_common
@click.option("--data", type=PATH, required=True, help="Folder of the data set.")
@click.option("--dataset", default="scenes", show_default=True, help="Name: capwright data list.")
@click.option("--split", help="Part of the set; the usual one without.")
@click.option("--method", "methods", multiple=True, help="Repeatable; all methods without.")
@click.option("--things", is_flag=True, help="Leave the background out, as VOC with 20 classes.")
@click.option(
    "--residual/--no-residual",
    default=None,
    help="Residual of the last block; without, as each method has it.",
)
@click.option("--ffn/--no-ffn", default=None, help="Feed-forward part of the last block, likewise.")
@click.option("--pamr", is_flag=True, help="Follow the edges of the picture.")
@click.option("--samples", type=click.IntRange(min=1), help="First so many pictures; all without.")
def training_free(methods: tuple[str, ...], **options: Any) -> None:
    """Segmentation from words alone, by every method and under two protocols."""
    from capwright.dense.training_free import METHODS
    from capwright.evaluate.training_free import TrainingFreeConfig, run

    options["checkpoint"] = _checkpoint(options["checkpoint"])
    _print(run(TrainingFreeConfig(**options, methods=methods or METHODS)))


def _checkpoint(text: str) -> str | None:
    return None if text == SCRATCH else text


def _splits(texts: tuple[str, ...]) -> dict[str, Path]:
    from capwright.core.errors import CapwrightError

    splits: dict[str, Path] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or not name or not path or name in splits:
            raise CapwrightError(
                f"--test {text!r} is not a new SPLIT=SCENES: "
                "write it as seen=FOLDER, each split once"
            )
        splits[name] = Path(path)
    return splits


def _print(summary: Any) -> None:
    from capwright.core.config import as_dict

    click.echo(json.dumps(as_dict(summary)))
