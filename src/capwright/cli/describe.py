"""`capwright describe`: write captions for the pictures of a corpus."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from capwright.cli._running import running_options, show

if TYPE_CHECKING:
    from capwright.captions.runner import Running

BACKENDS = ("small", "trained", "coca", "transformers", "openai")
STYLES = ("short", "long", "regions")


@click.command()
@click.argument("corpus")
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Work folder.")
@click.option("--with", "backend", type=click.Choice(BACKENDS), default="small", help="Captioner.")
@click.option("--style", type=click.Choice(STYLES), default="short", help="Kind of captions.")
@click.option("--model", default="", help="Model to describe with: a tag, id, name or folder.")
@click.option("--max-side", default=768, help="Decode to so many pixels on the longer side.")
@click.option("--decode-threads", default=4, help="Threads that decode pictures ahead.")
@click.option("--set", "settings", multiple=True, metavar="A.B=VALUE", help="Change a field.")
@running_options
def command(
    corpus: str,
    work: Path,
    backend: str,
    style: str,
    model: str,
    max_side: int,
    decode_threads: int,
    settings: tuple[str, ...],
    running: "Running",
    dry_run: int | None,
) -> None:
    """Describe every picture, several captions each.

    `small` is the embedded captioner, trained on the corpus itself; `trained` is the same on
    another corpus; `coca` any CoCa of open_clip; `transformers` any image-to-text model; `openai`
    any server with an OpenAI-compatible API.
    """
    from capwright.core.config import override
    from capwright.core.errors import CapwrightError
    from capwright.corpus import index

    index.run_as_before(corpus, work)
    if backend == "small":
        from capwright.captions.describe import small

        if style != "short" or model:
            raise CapwrightError(
                "the small captioner writes short captions and takes no --model: "
                "leave out --style and --model, or choose --with coca, transformers or openai"
            )
        chosen = override(small.DescribeConfig(work=work), settings)
        show(small.dry_run(chosen, dry_run) if dry_run else small.run(chosen, running))
        return
    from capwright.captions.describe import stage

    named = [f"model={model}"] if model else []
    config = stage.DescribeConfig(
        work=work,
        backend=backend,
        options=override(stage.default_options(backend), [*named, *settings]),
        style=style,  # type: ignore[arg-type]
        max_side=max_side,
        decode_threads=decode_threads,
    )
    show(stage.dry_run(config, dry_run) if dry_run else stage.run(config, running))
