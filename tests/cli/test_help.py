"""Every option of every command has a text that stands alone."""

from typing import Any

import pytest

from vitrail.cli.app import app

COMMANDS = [(name,) for name in app if not name.startswith("-")]
COMMANDS += [("weights", name) for name in app["weights"] if not name.startswith("-")]


def found(words: tuple[str, ...]) -> Any:
    """Return a command, which may be one of another's."""
    command = app
    for word in words:
        command = command[word]
    return command


@pytest.mark.parametrize("name", COMMANDS, ids=" ".join)
def test_every_option_has_a_text_that_stands_alone(name: tuple[str, ...]) -> None:
    arguments: Any = found(name).assemble_argument_collection()
    assert len(arguments) > 0
    for argument in arguments:
        text = (argument.parameter.help or "").strip()
        where = f"{name} {' '.join(argument.names) or argument.field_info.name}"
        assert text, f"{where} has no text"
        assert text.endswith("."), f"{where}: {text}"
        first = text.split()[0].lower()
        assert first not in ("of", "likewise", "same", "as", "for", "on", "from"), f"{where}: {text}"
        assert not text.startswith("The same"), f"{where}: {text}"


@pytest.mark.parametrize("name", COMMANDS, ids=" ".join)
def test_every_command_says_what_it_does_in_one_line(name: tuple[str, ...]) -> None:
    first = found(name).help.splitlines()[0]
    assert first.endswith((".", ";")), f"{name}: {first}"
