"""`capwright audit`: one page that says whether a corpus is any good, before a training is paid."""

import json
from pathlib import Path

import click

PATH = click.Path(path_type=Path)


@click.command()
@click.argument("corpus")
@click.option("--work", type=PATH, required=True, help="Work folder.")
@click.option("--stages", default="", help="Stages beside the alt text, with commas; all without.")
@click.option("--sample", default=20_000, help="Pictures whose texts are read closely.")
@click.option(
    "--truth", default="", metavar="FIELD", help="Field of a sample's json with its true objects."
)
@click.option("--out", type=PATH, help="HTML file to write. [default: WORK/audit/audit.html]")
@click.option("--set", "settings", multiple=True, metavar="A.B=VALUE", help="Change a field.")
def command(
    corpus: str,
    work: Path,
    stages: str,
    sample: int,
    truth: str,
    out: Path | None,
    settings: tuple[str, ...],
) -> None:
    """Audit a corpus: one page, and one number for each caption source.

    The number is the caption quality index, 0 to 100: how much captions tell about their pictures.
    """
    from capwright.captions.audit import AuditConfig, run
    from capwright.core.config import as_dict, override
    from capwright.corpus.index import run_as_before
    from capwright.report.audit_page import AuditPageConfig
    from capwright.report.audit_page import run as write_page

    chosen = tuple(name.strip() for name in stages.split(",") if name.strip())
    config = AuditConfig(work=work, corpus=corpus, stages=chosen, sample=sample, truth=truth)
    config = override(config, settings)
    run_as_before(corpus, work)
    summary = run(config)
    page = write_page(AuditPageConfig(work=work, out=out))
    click.echo(json.dumps(as_dict(summary) | {"page": str(page.page)}))
