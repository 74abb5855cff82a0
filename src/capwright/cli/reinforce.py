"""`capwright reinforce`: store what CLIP teachers know of a corpus."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from capwright.cli._running import running_options, show

if TYPE_CHECKING:
    from capwright.captions.runner import Running


@click.command()
@click.argument("corpus")
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Work folder.")
@click.option(
    "--teacher",
    "teachers",
    multiple=True,
    metavar="MODEL",
    help="open_clip MODEL/TAG, hf-hub:ORG/REPOSITORY or checkpoint folder; may be repeated.",
)
@click.option(
    "--captions",
    "stages",
    multiple=True,
    metavar="STAGE",
    help="Stage whose captions are embedded too; may be repeated; none takes all that are there.",
)
@click.option("--augmentations", type=int, metavar="N", help="Views of a picture, 10 unless given.")
@click.option("--from-datacompdr", metavar="TARS", help="Take DataCompDR's files, not teachers.")
@click.option("--set", "settings", multiple=True, metavar="A.B=VALUE", help="Change a field.")
@running_options
def command(
    corpus: str,
    work: Path,
    teachers: tuple[str, ...],
    stages: tuple[str, ...],
    augmentations: int | None,
    from_datacompdr: str | None,
    settings: tuple[str, ...],
    running: "Running",
    dry_run: int | None,
) -> None:
    """Store teachers' embeddings of augmented pictures and captions.

    Training with the objective `reinforced` reads them in place of running the teachers.
    `--from-datacompdr` takes the embeddings, augmentations and synthetic captions that DataCompDR
    publishes for the samples of DataComp.
    """
    from capwright.core.config import override
    from capwright.core.errors import CapwrightError
    from capwright.corpus import index

    if from_datacompdr is not None:
        given = {"--teacher": teachers, "--captions": stages, "--augmentations": augmentations}
        for option, value in given.items():
            if value:
                raise CapwrightError(
                    f"{option} is given with --from-datacompdr, whose files hold all of it: "
                    "leave one of them out"
                )
        from capwright.experts import datacompdr

        chosen = override(datacompdr.DataCompDRConfig(work=work, tars=from_datacompdr), settings)
        index.run_as_before(corpus, work)
        if dry_run:
            show(datacompdr.dry_run(chosen, dry_run))
        else:
            show(list(datacompdr.run(chosen, running)))
        return
    from capwright.experts import reinforce

    config = reinforce.ReinforceConfig(work=work, teachers=teachers, stages=stages)
    if augmentations is not None:
        settings = (f"augmentations={augmentations}", *settings)
    config = override(config, settings)
    index.run_as_before(corpus, work)
    show(reinforce.dry_run(config, dry_run) if dry_run else reinforce.run(config, running))
