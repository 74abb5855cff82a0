"""The command `capwright`: one thin module per subcommand, found by its name.

A module `capwright.cli.NAME` with an attribute `command` (a `click.Command`) is the subcommand
NAME, underscores written as dashes; what several share is in modules whose name begins with one.
There is no list to keep: `capwright NAME` imports that one module alone, `capwright --help` imports
them all, so they import nothing heavy (torch, timm, open_clip, transformers, pyarrow) before the
command runs.

Results go to stdout, progress to stderr. A user's fault is one sentence on stderr and exit code 2.
"""

import importlib
import pkgutil
from typing import Any

import click

from capwright import __version__
from capwright.core.errors import CapwrightError

INTERRUPTED = 130  # what a shell reports for a program that SIGINT ended


class UserFault(click.ClickException):
    """A CapwrightError on its way to the terminal: one sentence, exit code 2."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        """Write the sentence to stderr."""
        click.echo(f"capwright: {self.message}", file=file, err=True)


class Commands(click.Group):
    """The modules beside this file, imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every subcommand, in alphabetical order."""
        names = (module.name for module in pkgutil.iter_modules(__path__))
        return sorted(name.replace("_", "-") for name in names if not name.startswith("_"))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the subcommand's module; None where there is none of that name."""
        if cmd_name not in self.list_commands(ctx):
            return None
        module = importlib.import_module(f"{__name__}.{cmd_name.replace('-', '_')}")
        command = module.command
        assert isinstance(command, click.Command), f"{module.__name__}.command is {command!r}"
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the subcommand, with a user's fault and Ctrl-C turned into exit codes."""
        try:
            return super().invoke(ctx)
        except CapwrightError as error:
            raise UserFault(" ".join(str(error).split())) from error
        except KeyboardInterrupt:
            click.echo("capwright: interrupted", err=True)
            raise click.exceptions.Exit(INTERRUPTED) from None


SETTINGS = {"help_option_names": ["-h", "--help"], "show_default": True}  # subcommands inherit them


@click.group(cls=Commands, context_settings=SETTINGS)
@click.version_option(__version__, prog_name="capwright")
def group() -> None:
    """Better captions for image-text pairs, CLIP trained on them, dense probes, one report."""


def main() -> None:
    """Entry point of the console script."""
    group(prog_name="capwright")
