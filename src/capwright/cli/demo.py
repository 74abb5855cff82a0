"""`capwright demo`: the main job on real pictures, from alt text to a report."""

from pathlib import Path

import click

FOLDER = click.Path(path_type=Path)


@click.command()
@click.option("--out", type=FOLDER, required=True, help="Run folder to write, or to go on with.")
@click.option("--quick", is_flag=True, help="The same plumbing in under two minutes.")
@click.option("--all-arms", is_flag=True, help="Add the arms oracle and mae.")
@click.option("--cutouts", type=FOLDER, help="Your own RGBA cut-outs with captions.")
@click.option("--seed", default=0, help="Other scenes, other first weights.")
def command(out: Path, quick: bool, all_arms: bool, cutouts: Path | None, seed: int) -> None:
    """Run the whole story: captions, CLIP, probes, report."""
    from capwright.recipes import demo

    arms = demo.ALL_ARMS if all_arms else demo.SHORT_ARMS
    make = demo.quick if quick else demo.DemoConfig
    results = demo.run(make(out=out, arms=arms, cutouts=cutouts, seed=seed))
    click.echo(demo.table(results))
    click.echo(f"report: {out / 'report.html'}")
