"""`capwright select`: keep, replace or drop captions, with reasons that are counted."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from capwright.cli._running import running_options, show

if TYPE_CHECKING:
    from capwright.captions.runner import Running

RULE = '"NAME: CONDITION"'


@click.command()
@click.argument("corpus")
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Work folder.")
@click.option("--rule", "rules", multiple=True, metavar=RULE, help="Drop captions by SQL.")
@click.option(
    "--picture-rule", "picture_rules", multiple=True, metavar=RULE, help="Drop pictures by SQL."
)
@click.option(
    "--rules", "file", type=click.Path(path_type=Path), help="Python file with rules(), a list."
)
@click.option(
    "--only", type=click.Path(path_type=Path), help="DataComp subset: drop pictures outside it."
)
@click.option(
    "--subset", type=click.Path(path_type=Path), help="Write the uids of kept pictures, .npy."
)
@click.option("--set", "settings", multiple=True, metavar="A.B=VALUE", help="Change a field.")
@running_options
def command(
    corpus: str,
    work: Path,
    rules: tuple[str, ...],
    picture_rules: tuple[str, ...],
    file: Path | None,
    only: Path | None,
    subset: Path | None,
    settings: tuple[str, ...],
    running: "Running",
    dry_run: int | None,
) -> None:
    """Keep, replace or drop captions by their scores and by rules.

    A rule is a name and an SQL condition over the columns of scores, captions and pictures, such as
    --rule "junk: junk <> ''" or --picture-rule "tiny: least(width, height) < 64". What it holds for
    is dropped, and counted under its name; nothing is deleted.
    """
    from capwright.captions import select
    from capwright.captions.rules import load_rules, parse_rule
    from capwright.captions.subset import write_subset
    from capwright.core.config import override
    from capwright.corpus import index

    found = (
        *(load_rules(file) if file else ()),
        *(parse_rule(text) for text in rules),
        *(parse_rule(text, "picture") for text in picture_rules),
    )
    config = select.SelectConfig(work=work, rules=found, only_uids=only)
    config = override(config, settings)
    index.run_as_before(corpus, work)
    if dry_run:
        show(select.dry_run(config, dry_run))
        return
    summary = select.run(config, running)
    if subset:
        write_subset(work, subset)
    show(summary)
