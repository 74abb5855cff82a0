"""`capwright fuse`: one caption from alt text and description, nothing invented."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from capwright.cli._running import running_options, show

if TYPE_CHECKING:
    from capwright.captions.runner import Running

WAYS = ("rules", "llm")


@click.command()
@click.argument("corpus")
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Work folder.")
@click.option("--with", "way", type=click.Choice(WAYS), default="rules", help="Way to fuse.")
@click.option("--describe-stage", default="", help="Stage with the descriptions.")
@click.option("--set", "settings", multiple=True, metavar="A.B=VALUE", help="Change a field.")
@running_options
def command(
    corpus: str,
    work: Path,
    way: str,
    describe_stage: str,
    settings: tuple[str, ...],
    running: "Running",
    dry_run: int | None,
) -> None:
    """Fuse alt text and description into one caption.

    `rules` puts the alt text's exact names into the description; the embedded score tower judges
    them, or no model with --set judge=none. `llm` asks a server with an OpenAI-compatible API,
    checks every answer, and falls back to the rules.
    """
    from capwright.core.config import override
    from capwright.corpus import index

    index.run_as_before(corpus, work)
    if describe_stage:
        settings = (f"describe_stage={describe_stage}", *settings)
    if way == "rules":
        from capwright.captions.fuse import rules

        config = override(rules.FuseConfig(work=work), settings)
        show(rules.dry_run(config, dry_run) if dry_run else rules.run(config, running))
        return
    from capwright.captions.fuse import llm

    asked = override(llm.FuseConfig(work=work), settings)
    show(llm.dry_run(asked, dry_run) if dry_run else llm.run(asked, running))
