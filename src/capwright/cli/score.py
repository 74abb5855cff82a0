"""`capwright score`: how good each caption is."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from capwright.cli._running import running_options, show

if TYPE_CHECKING:
    from capwright.captions.runner import Running

WAYS = ("clip", "text", "concepts")


@click.command()
@click.argument("corpus")
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Work folder.")
@click.option("--with", "way", type=click.Choice(WAYS), default="clip", help="Kind of score.")
@click.option("--model", default="", help="open_clip checkpoint folder or MODEL/TAG to score with.")
@click.option("--set", "settings", multiple=True, metavar="A.B=VALUE", help="Change a field.")
@running_options
def command(
    corpus: str,
    work: Path,
    way: str,
    model: str,
    settings: tuple[str, ...],
    running: "Running",
    dry_run: int | None,
) -> None:
    """Score alt text and captions, 0 to 1.

    `clip` is the fit of a caption to its picture; `text` looks at the words alone (junk, language,
    tokens, repetition, how specific it is); `concepts` at which of the things named are seen.
    """
    from capwright.core.config import override
    from capwright.core.errors import CapwrightError
    from capwright.corpus import index

    if way == "text" and model:
        raise CapwrightError(
            f"the score text uses no model, but --model is {model!r}: "
            "leave it out, or choose --with clip or concepts"
        )
    score: Any = import_module(f"capwright.captions.score.{way}")
    named = [f"model={model}"] if model else []
    config = override(score.ScoreConfig(work=work), [*named, *settings])
    index.run_as_before(corpus, work)
    show(score.dry_run(config, dry_run) if dry_run else score.run(config, running))
