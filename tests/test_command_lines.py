"""Every command line that we write down can be typed: in README, docs, help, hints and docstrings.

Fenced blocks and code in backticks are parsed whole. In the strings of the source a command line is
followed as far as its words are options of the command, and every option that is named anywhere must be
one of some command of ours.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = dict(re.findall(r'^(cospec-\w+) = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.M))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
ROOMS = ("runtime", "export", "models", "calibration", "examples")
OWN_OPTIONS = (ROOT / "models/tiny_pair/train.py",)
SOURCES = [
    ROOT / "errors.py",
    *(p for room in ROOMS for p in sorted((ROOT / room).rglob("*.py")) if p not in OWN_OPTIONS),
]
_LAYOUT = tuple(f"{room}/" for room in ROOMS)

FOREIGN_OPTIONS = {
    *("--upgrade", "--force-reinstall", "--system-site-packages", "--clear"),  # pip and venv
    *("--merge", "--local-dir"),  # llama.cpp's and the hub's own commands
    *("--head", "--no"),  # of `ray start`; the beginning of click's own --no-NAME
}
FOREIGN_FILES = {"isolation.py", "power.py"}
"""Files whose options are those of bubblewrap and setpriv, or of nvidia-smi."""
PLACEHOLDER = re.compile(r"[A-Z][A-Z0-9_./-]*|.*(\.\.\.|\{|\$|<).*")
# Not the names of threads and of a file format.
_NAME = re.compile(r"(?<![\w/.-])(cospec-(?!slot|reader|cache)[a-z]+)(?![\w-])")
_COMMENT = re.compile(r"(^|\s)#.*$")


@pytest.fixture(autouse=True)
def no_file_is_read(monkeypatch):
    """Options that take their value from a file get a schema: pages name files that are not there."""
    monkeypatch.setattr("cospec.runtime.cli.run_options._text_of", lambda path: "{}")


@cache
def command_of(name: str) -> click.Command:
    module, _, attribute = SCRIPTS[name].partition(":")
    command: click.Command = getattr(import_module(module), attribute)
    return command


def all_commands(command: click.Command) -> Iterator[click.Command]:
    yield command
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            inner = command.get_command(click.Context(command), name)
            assert inner is not None
            yield from all_commands(inner)


def check(words: list[str]) -> str | None:
    """Return what is wrong with a command line, None if it can be typed."""
    if words[0] not in SCRIPTS:
        return f"there is no command {words[0]}"
    command, rest = command_of(words[0]), words[1:]
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        inner = command.get_command(click.Context(command), rest[0])
        if inner is None:
            return f"{command.name} has no subcommand {rest[0]}"
        command, rest = inner, rest[1:]
    context = click.Context(command, **command.context_settings)
    try:
        given, extra, _ = command.make_parser(context).parse_args(rest)
        if extra and extra != ["..."]:
            return f"takes no argument {extra[0]}"
        for parameter in command.params:
            value = given.get(str(parameter.name))
            kind = parameter.type
            is_path = isinstance(kind, click.Path | click.File)
            if isinstance(value, str) and not is_path and not PLACEHOLDER.fullmatch(value):
                kind.convert(value, parameter, context)
    except click.UsageError as error:
        return error.format_message()
    return None


def in_markdown(text: str) -> Iterator[list[str]]:
    """Yield the command lines in fenced blocks and in backticks."""
    blocks = re.findall(r"^```.*?\n(.*?)^```", text, re.M | re.S)
    spans = re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    for block in blocks:
        for line in block.replace("\\\n", " ").splitlines():
            yield from command_lines(line)
    for span in spans:
        for words in command_lines(" ".join(span.split())):
            # `cospec-run --backend` names the option, and is not meant to be typed.
            yield words if len(words) > 2 or not words[-1].startswith("--") else [*words, "VALUE"]


def command_lines(line: str) -> Iterator[list[str]]:
    """Yield the command lines that begin a line, or follow a pipe or another command."""
    if "cospec-" not in line or line.startswith(_LAYOUT):
        return
    words = shlex.split(_COMMENT.sub("", line.removeprefix("$ ")), posix=True)
    part: list[str] = []
    for word in [*words, "|"]:
        if word not in ("|", "&&", ";", ">", "2>", "<", "&"):
            part.append(word)
            continue
        while part and re.fullmatch(r"[A-Z_]+=.*", part[0]):
            part.pop(0)  # a variable for the command
        if part and part[0].startswith("cospec-"):
            yield part
        part = [] if word in ("|", "&&", ";") else ["of a redirection"]


def strings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of the strings of a module; what is filled in becomes a placeholder."""
    inside = {
        id(value)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for value in ast.walk(node)
        if value is not node
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [str(x.value) if isinstance(x, ast.Constant) else "FILLED" for x in node.values]
            yield node.lineno, "".join(parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from [] if id(node) in inside else [(node.lineno, node.value)]


def beginnings(text: str) -> Iterator[list[str]]:
    """Yield the command lines in prose: the name, and what follows as far as it belongs to it."""
    for found in _NAME.finditer(text):
        name = found[1]
        words = [name]
        if name not in SCRIPTS:
            yield words
            continue
        rest = re.split(r"\s+", text[found.end() :].strip())
        command = command_of(name)
        while isinstance(command, click.Group) and rest:
            inner = command.get_command(click.Context(command), rest[0].strip("`,.;:)'\""))
            if inner is None:
                break
            command = inner
            words.append(rest.pop(0).strip("`,.;:)'\""))
        options = {o: p for p in command.params for o in (*p.opts, *p.secondary_opts)}
        while rest and rest[0].startswith("--"):
            ends = rest[0][-1] in "`,.;:)'\""
            option = rest.pop(0).strip("`,.;:)'\"")
            words.append(option)
            parameter = options.get(option)
            takes_value = isinstance(parameter, click.Option) and not parameter.is_flag
            if takes_value and not ends and rest:
                ends = rest[0][-1] in "`,.;:)'\""
                words.append(rest.pop(0).strip("`,.;:)'\""))
            elif takes_value:
                words.append("VALUE")
            if ends:
                break
        yield words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_command_lines_of_a_page_can_be_typed(page):
    wrong = [
        (words, problem) for words in in_markdown(page.read_text()) if (problem := check(words))
    ]
    assert wrong == []


def test_command_lines_in_strings_of_the_source_can_be_typed():
    wrong, count = [], 0
    for path in SOURCES:
        for line, text in strings(ast.parse(path.read_text())):
            for words in beginnings(text):
                count += 1
                problem = check(words)
                if problem:
                    wrong.append((f"{path.relative_to(ROOT)}:{line}", " ".join(words), problem))
    assert wrong == []
    assert count > 50, "the strings were not found"


def lm_eval_options() -> set[str]:
    """Return the options of lm-evaluation-harness, which `cospec-bench lm-eval` passes on."""
    from lm_eval._cli import HarnessCLI

    return set(HarnessCLI()._subparsers.choices["run"]._option_string_actions)


def test_every_option_that_is_named_exists():
    known = set(FOREIGN_OPTIONS)
    for name in SCRIPTS:
        for command in all_commands(command_of(name)):
            for parameter in command.params:
                known |= {*parameter.opts, *parameter.secondary_opts}
    known |= {"--help", *lm_eval_options()}
    wrong = []
    for path in SOURCES:
        if path.name in FOREIGN_FILES:
            continue
        for line, text in strings(ast.parse(path.read_text())):
            named = set(re.findall(r"(?<![\w-])--[a-z][a-z_-]*[a-z]", text))
            wrong += [(f"{path.relative_to(ROOT)}:{line}", each) for each in sorted(named - known)]
    assert wrong == []


def test_a_wrong_line_is_found():
    assert check(["cospec-nothing"]) == "there is no command cospec-nothing"
    assert "No such option" in str(check(["cospec-export", "--prefill-chunk", "8"]))
    assert "is not one of" in str(check(["cospec-export", "--precision", "int3"]))
    assert "requires an argument" in str(check(["cospec-export", "--target"]))
    assert "is not a valid int" in str(check(["cospec-export", "--capacity", "many"]))
    assert check(["cospec-export", "--target", "NAME", "--capacity", "TOKENS"]) is None
    assert "no subcommand" in str(check(["cospec-calibrate", "nothing"]))
    assert list(command_lines("A=1 cospec-run x | cospec-doctor # cospec-no")) == [
        ["cospec-run", "x"],
        ["cospec-doctor"],
    ]
    assert list(beginnings("run `cospec-export --target tiny --trt`, or cospec-run.")) == [
        ["cospec-export", "--target", "tiny", "--trt"],
        ["cospec-run"],
    ]
