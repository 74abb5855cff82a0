"""`capwright experts`: label every pixel of the pictures of a corpus."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from capwright.cli._running import running_options, show

if TYPE_CHECKING:
    from capwright.captions.runner import Running

TASKS = ("segmentation", "depth")


@click.command()
@click.argument("corpus")
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Work folder.")
@click.option(
    "--with",
    "experts",
    multiple=True,
    metavar="TASK=MODEL",
    help="Expert for segmentation or depth: a model of transformers, scenes or local:FOLDER.",
)
@click.option("--normals", type=click.Choice(["from-depth"]), help="Surface normals as well.")
@click.option("--name", default="experts", help="Labels go to WORK/captions/NAME.")
@click.option("--size", default=64, help="Side of the labels in pixels.")
@click.option("--set", "settings", multiple=True, metavar="A.B=VALUE", help="Change a field.")
@running_options
def command(
    corpus: str,
    work: Path,
    experts: tuple[str, ...],
    normals: str | None,
    name: str,
    size: int,
    settings: tuple[str, ...],
    running: "Running",
    dry_run: int | None,
) -> None:
    """Label every picture once with segmentation, depth and normals.

    MODEL is whatever the pipelines image-segmentation and depth-estimation of transformers load (a
    hub id or a folder); `scenes` trains a small expert on the labels that 4% of the corpus bring
    along; `local:FOLDER` is such an expert of another corpus. The objective pseudo_labels of
    `capwright pretrain` learns the labels.
    """
    from capwright.core.config import override
    from capwright.corpus import index

    named = _named(experts)
    index.run_as_before(corpus, work)
    from capwright.experts import stage

    config = override(
        stage.ExpertsConfig(
            work=work,
            normals=normals or "",  # type: ignore[arg-type]
            name=name,
            size=size,
            **named,  # type: ignore[arg-type]
        ),
        settings,
    )
    show(stage.dry_run(config, dry_run) if dry_run else stage.run(config, running))


def _named(experts: tuple[str, ...]) -> dict[str, str]:
    """Task to model; CapwrightError for what is not TASK=MODEL, or a task named twice."""
    from capwright.core.errors import CapwrightError

    named: dict[str, str] = {}
    for text in experts:
        task, equals, model = text.partition("=")
        if task not in TASKS or not equals or not model:
            raise CapwrightError(
                f"--with is {text!r}, but must be segmentation=MODEL or depth=MODEL: for example "
                "--with depth=Intel/dpt-large"
            )
        if task in named:
            raise CapwrightError(
                f"--with names two experts for {task} ({named[task]}, {model}): give one a run, "
                "and the other a run with another --name"
            )
        named[task] = model
    return named
