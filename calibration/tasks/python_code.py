"""The checker `python`: does generated code pass its tests, in the sandbox.

The answer of a task is an object:

| key | value |
|---|---|
| test | code that raises where the solution is wrong; it calls the solution's functions |
| entry_point | the function that the tests call; optional |
| prefix | code that the prompt began, for models that continue it; optional |

That is HumanEval (prefix = prompt, test = test + `check(entry_point)`) and MBPP (test = asserts). The
tests run in a process of their own (sandbox.py). They may use the imports and functions that the prefix
holds before the entry point: those of the task, whatever the solution made of them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from .sandbox import DEFAULT_MEMORY_BYTES, DEFAULT_SECONDS, Outcome, run_python

MAX_CODE = 100_000
_CONTINUES = re.compile(r"\n*(?:[ ]{2,}|\t)(?![`\s])")
_MAX_SECONDS = 300.0
_FENCE = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
_KEYS = {"test", "entry_point", "prefix"}


def solution_parts(answer: dict[str, Any], text: str) -> list[str]:
    """The code of a solution, as programs to run one after the other.

    Of a chat answer the last fenced block that defines the entry point counts, else the first
    block. Code that does not define it continues the prefix; a bare continuation (a text that
    begins indented) ends where a line begins that is not, as in HumanEval's own harness. Code that
    does define it runs after what the prefix holds before that function (imports and helpers).
    """
    prefix, defines = answer.get("prefix", ""), _definition(answer)
    text = text[:MAX_CODE].replace("\r\n", "\n")
    blocks = [] if prefix and _CONTINUES.match(text) else _FENCE.findall(text)
    if blocks:
        code = next((b for b in reversed(blocks) if defines and defines.search(b)), blocks[0])
    else:
        code = re.sub(r"\A\s*\[BEGIN\]\n?|\[DONE\].*\Z", "", text, flags=re.DOTALL)
    if not prefix:
        return [code]
    if defines and defines.search(code):
        return [helpers(answer), code]
    return [prefix + (code if blocks else _indented_part(code))]


def helpers(answer: dict[str, Any]) -> str:
    """What the prefix of a task holds before the function that it is about: imports and helpers."""
    prefix, defines = answer.get("prefix", ""), _definition(answer)
    starts = [match.start() for match in defines.finditer(prefix)] if defines else []
    return prefix[: starts[-1]] if starts else ""


def _definition(answer: dict[str, Any]) -> re.Pattern[str] | None:
    name = answer.get("entry_point")
    return re.compile(rf"^(?:async[ ]+)?def[ ]+{re.escape(name)}\b", re.MULTILINE) if name else None


def _indented_part(code: str) -> str:
    """Lines up to the first that is not indented; the first line continues the prefix itself."""
    first, *rest = code.split("\n")
    kept = [first]
    for line in rest:
        if line.strip() and not line.startswith((" ", "\t")):
            break
        kept.append(line)
    return "\n".join(kept) + "\n"


@dataclass(frozen=True)
class PythonChecker:
    """Runs a solution and its tests. `seconds` is wall-clock time, `memory_mb` in MiB."""

    seconds: float = DEFAULT_SECONDS
    memory_mb: int = DEFAULT_MEMORY_BYTES >> 20

    def __post_init__(self) -> None:
        if not isinstance(self.seconds, int | float) or not 0 < self.seconds <= _MAX_SECONDS:
            raise ValueError(f"'seconds' is not a number above 0, up to {_MAX_SECONDS:g}")
        if not isinstance(self.memory_mb, int) or not 64 <= self.memory_mb <= 1 << 16:
            raise ValueError("'memory_mb' is not a whole number from 64 to 65536")

    def problem_with(self, answer: Any) -> str | None:
        """What is wrong with a gold answer, or None."""
        if not isinstance(answer, dict) or not set(answer) <= _KEYS:
            return f"the answer is not an object with the keys {', '.join(sorted(_KEYS))}"
        if not all(isinstance(value, str) for value in answer.values()):
            return "the answer's values are not all texts"
        if not answer.get("test", "").strip():
            return "the answer has no 'test'"
        return None

    def run(self, answer: Any, text: str) -> Outcome:
        """Run the solution in `text` and its tests, and say how that ended."""
        return run_python(
            [*solution_parts(answer, text), answer["test"]],
            entry_point=answer.get("entry_point"),
            helpers=helpers(answer),
            seconds=self.seconds,
            memory_bytes=self.memory_mb << 20,
        )

    def check(self, answer: Any, text: str) -> bool:
        """Whether the solution in `text` passes the tests.

        Raises:
            BackendError: the sandbox does not work on this system; never because of `text`.
        """
        return self.run(answer, text).ok
