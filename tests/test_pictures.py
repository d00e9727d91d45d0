"""The pictures in the documentation are those that docs/pictures.py makes of real runs."""

from __future__ import annotations

import html
import importlib.util
import re
import struct
from pathlib import Path

import pytest
from click.testing import CliRunner
from test_command_lines import check, command_lines

DOCS = Path(__file__).resolve().parents[1] / "docs"
pytest.importorskip("rich")
pytest.importorskip("pty", reason="no pseudo-terminals on this system")
_spec = importlib.util.spec_from_file_location("pictures", DOCS / "pictures.py")
assert _spec is not None
assert _spec.loader is not None
pictures = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(pictures)


def packed(text: str) -> str:
    """Return a text without spaces: the picture has none between coloured words."""
    return re.sub(r"\s", "", text)


def shown() -> str:
    """The text of the terminal in the picture, packed."""
    picture = (DOCS / "images/demo.svg").read_text(encoding="utf-8")
    pieces = re.findall(r"<text[^>]*>(.*?)</text>", picture, re.S)
    return packed(html.unescape("".join(pieces)))


def test_the_commands_in_the_picture_are_those_of_the_program_and_can_be_typed():
    text = shown()
    for command in (pictures.EXPORT, pictures.TRACED, *pictures.COMMANDS):
        assert [check(words) for words in command_lines(command)] == [None]
    for command in pictures.COMMANDS:
        assert packed(f"$ {command}") in text


def test_the_picture_shows_what_the_command_prints(tiny_pair_bundle):
    """The answer in strict mode, run again."""
    from cospec.runtime.cli.run import main

    (command,) = [each for each in pictures.COMMANDS if "--mode strict" in each]
    (words,) = command_lines(command)
    words[words.index("models/tiny")] = str(tiny_pair_bundle)
    result = CliRunner().invoke(main, [word for word in words[1:] if word != "--provenance"])
    assert result.exit_code == 0
    assert "2400" in result.stdout
    assert packed(result.stdout) in shown()


def test_the_picture_of_a_trace_is_drawn():
    head = (DOCS / "images/trace.png").read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", head[16:24])
    assert width >= 800
    assert height >= 400


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_the_pictures_are_shown(page):
    text = (DOCS.parent / page).read_text(encoding="utf-8")
    assert "images/demo.svg" in text
