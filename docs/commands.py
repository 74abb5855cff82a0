"""Print docs/commands.md: every subcommand with its options, from the commands themselves.

Run it with `make docs`. A test fails while the page does not say what the commands say.
"""

import sys
from collections.abc import Iterator

import click

from capwright.cli import group

HEAD = """\
# Commands

Written by `make docs` from the commands themselves. Results go to stdout, progress to stderr.
Exit code 2 is the user's fault (one sentence on stderr says which), 130 is Ctrl-C.
"""


def page() -> str:
    """The whole page as Markdown."""
    root = click.Context(group, info_name="capwright", **group.context_settings)
    lines = [HEAD]
    for name in group.list_commands(root):
        command = group.get_command(root, name)
        assert command is not None
        lines += section(click.Context(command, info_name=name, parent=root), command)
    return "\n".join(lines)


def section(context: click.Context, command: click.Command) -> Iterator[str]:
    """One command: what it does, how it is called, what it takes."""
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"## capwright {context.info_name}\n"
    yield "\n".join(line.strip() for line in (command.help or "").strip().splitlines()) + "\n"
    yield f"```\ncapwright {context.info_name} {usage}\n```\n"
    yield "| option | meaning |\n|---|---|"
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if isinstance(parameter, click.Option) and record and "--help" not in parameter.opts:
            yield "| " + " | ".join(cell(part, i) for i, part in enumerate(record)) + " |"
    yield ""


def cell(text: str, column: int) -> str:
    """A table cell; the first column is code."""
    text = " ".join(text.split()).replace("|", "\\|")
    return f"`{text}`" if column == 0 else text


if __name__ == "__main__":
    sys.stdout.write(page())
