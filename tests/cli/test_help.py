"""`capwright --help` is quick, complete and imports nothing heavy; faults are one sentence."""

import json
import subprocess
import sys
import time
from types import SimpleNamespace

import click
import pytest
from click.testing import CliRunner

from capwright import cli
from capwright.cli import group
from capwright.core.errors import CapwrightError

HEAVY = ("torch", "torchvision", "timm", "open_clip", "transformers", "pyarrow", "duckdb")
HELP = [sys.executable, "-c", "from capwright.cli import main; main()", "--help"]


def command_names() -> list[str]:
    return group.list_commands(click.Context(group))


def test_help_answers_in_half_a_second() -> None:
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run(HELP, check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
        if min(seconds) < 0.5:
            break
    assert min(seconds) < 0.5, f"capwright --help took {min(seconds):.2f} s at best"


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, json; from capwright.cli import group; "
        "group(['--help'], standalone_mode=False); "
        f"print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    assert json.loads(result.stdout.splitlines()[-1]) == []


def test_help_lists_every_command_with_one_line() -> None:
    text = CliRunner().invoke(group, ["--help"], terminal_width=80).output
    lines = text.split("Commands:\n")[1].splitlines()
    described = {line.split()[0]: line.split()[1:] for line in lines if line.strip()}
    assert sorted(described) == command_names(), "a command's help takes more than one line"
    for name, words in described.items():
        assert len(words) >= 3, f"capwright {name} has no one-line help"
        assert not words[-1].endswith("..."), f"the first sentence of capwright {name} is too long"


@pytest.mark.parametrize("name", command_names())
def test_every_command_and_option_has_help(name: str) -> None:
    command = group.get_command(click.Context(group), name)
    assert command is not None and command.help
    bare = [
        parameter.opts[0]
        for parameter in command.params
        if isinstance(parameter, click.Option) and not parameter.help
    ]
    assert not bare, f"capwright {name}: no help for {', '.join(bare)}"


def run_with(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, arguments: tuple[str, ...] = ()
) -> SimpleNamespace:
    """Run a subcommand that raises `error` and say how it ended."""

    @click.command()
    def command() -> None:
        raise error

    monkeypatch.setattr(cli.Commands, "get_command", lambda *_: command)
    result = CliRunner().invoke(group, ["broken", *arguments])
    return SimpleNamespace(code=result.exit_code, out=result.stdout, err=result.stderr)


def test_a_users_fault_is_one_sentence_and_exit_code_2(monkeypatch: pytest.MonkeyPatch) -> None:
    error = CapwrightError("size must be a multiple of 8, not 30:\n  pass --size 32")
    ended = run_with(monkeypatch, error)
    assert ended.code == 2
    assert ended.err == "capwright: size must be a multiple of 8, not 30: pass --size 32\n"
    assert ended.out == ""


def test_interrupting_exits_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = run_with(monkeypatch, KeyboardInterrupt())
    assert (ended.code, ended.err) == (130, "capwright: interrupted\n")


def test_a_bug_is_not_dressed_up_as_a_users_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_with(monkeypatch, AssertionError("a bug")).code == 1


def test_an_unknown_command_is_named() -> None:
    result = CliRunner().invoke(group, ["no-such-command"])
    assert result.exit_code == 2
    assert "no-such-command" in result.stderr


def test_the_choices_are_those_of_the_stages() -> None:
    from capwright.captions.describe import stage
    from capwright.cli import describe, index
    from capwright.corpus.index import FORMATS

    assert ("small", *stage.BACKENDS) == describe.BACKENDS
    assert stage.STYLES == describe.STYLES
    assert ("auto", *FORMATS) == index.FORMATS
