"""The options that every caption stage's command takes: how it runs, never what it writes.

`running_options` gives a command `running` (a `captions.runner.Running`) and `dry_run` (None or a
number of pictures), and ends it cleanly on Ctrl-C and SIGTERM. `show` prints what it returns.
"""

import json
import signal
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import click

SAMPLES = 10  # pictures that --dry-run shows
OPTIONS = (
    click.option(
        "--engine",
        type=click.Choice(["local", "ray"]),
        default="local",
        help="Processes of this machine, or actors of a Ray cluster.",
    ),
    click.option(
        "--workers", default=1, show_default=True, help="Processes or actors, a captioner each."
    ),
    click.option(
        "--gpus-per-worker", default=0.0, show_default=True, help="GPUs that Ray gives a worker."
    ),
    click.option(
        "--ray-address", default="", help='Cluster to join, such as "auto"; else Ray starts here.'
    ),
    click.option(
        "--limit", type=int, metavar="N", help="First shards that hold N pictures, whole shards."
    ),
    click.option(
        "--dry-run",
        type=click.IntRange(min=1),
        is_flag=False,
        flag_value=SAMPLES,
        metavar="[N]",
        help=f"Show what the first N ({SAMPLES}) pictures get; write no captions.",
    ),
    click.option("--retry-failed", is_flag=True, help="Do pictures again that failed before."),
    click.option(
        "--max-failure-rate",
        default=0.05,
        show_default=True,
        help="Stop when a larger share of pictures fails.",
    ),
)
FIELDS = (
    "engine",
    "workers",
    "gpus_per_worker",
    "ray_address",
    "limit",
    "retry_failed",
    "max_failure_rate",
)


def running_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options; the command gets `running` and `dry_run` for them."""

    @wraps(function)
    def with_running(*arguments: Any, **options: Any) -> Any:
        from capwright.captions.runner import Running

        running = Running(**{name: options.pop(name) for name in FIELDS})
        return _stoppable(lambda: function(*arguments, running=running, **options))

    for option in reversed(OPTIONS):
        with_running = option(with_running)
    return with_running


def show(outcome: Any) -> None:
    """Print a summary as a line of JSON, or the rows of a dry run as a line each."""
    from capwright.core.config import as_dict

    for row in outcome if isinstance(outcome, list) else [outcome]:
        click.echo(json.dumps(as_dict(row), ensure_ascii=False, default=str))


def _stoppable(run: Callable[[], Any]) -> Any:
    """Run with SIGTERM as orderly as Ctrl-C: what is half-written goes, what is finished stays."""
    sent = [signal.SIGINT]

    def stop(number: int, frame: Any) -> None:
        sent[0] = signal.Signals(number)
        raise KeyboardInterrupt  # the one exception that Ray lets through its C++ code

    before = signal.signal(signal.SIGTERM, stop)
    try:
        return run()
    except KeyboardInterrupt:
        click.echo(
            f"capwright: stopped by {sent[0].name}; finished shards are kept, and the same command "
            "goes on with the others",
            err=True,
        )
        sys.exit(128 + sent[0])
    finally:
        signal.signal(signal.SIGTERM, before)
