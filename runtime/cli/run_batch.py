"""cospec-run's batch: it answers the prompts of a file into another file, and can be interrupted.

Each answer is written as one line as soon as it is complete. Running the same command again keeps the
complete answers and generates the rest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...errors import CospecError, PromptError, ResourceError, UsageError
from ..bundle.durable import ensure_replaceable, write_whole
from ..bundle.json_input import parse_json_object
from ..decoding.options import GenerationOptions
from ..decoding.session import Prompt, Session
from .run_options import Prompts
from .run_output import warn_if_uncertified

_MAX_LINE_BYTES = 64 << 20
Id = str | int


@dataclass(frozen=True)
class Request:
    """One line of the input.

    Attributes:
        number: of the line, from 1.
        id: of the answer; the line's number if the line has none.
        prompt: of the generation.
        options: of the generation.
        digest: hash of everything that the answer depends on.
    """

    number: int
    id: Id
    prompt: Prompt
    options: GenerationOptions
    digest: str


@dataclass(frozen=True)
class Failure:
    """A line of the input that cannot be answered."""

    number: int
    id: Id | None
    error: CospecError

    def to_json(self) -> dict[str, Any]:
        """Return it as a line of the output."""
        error = {"type": type(self.error).__name__, "message": self.error.message}
        return {"id": self.id, "line": self.number, "error": error}


@dataclass(frozen=True)
class Done:
    """Result of a batch: number of lines answered now, answered before, and failed."""

    answered: int
    kept: int
    failed: int

    def to_json(self) -> dict[str, int]:
        """Return the counts as plain values."""
        return asdict(self)

    def summary(self) -> str:
        """Return the counts in one line."""
        return f"{self.answered} answered, {self.kept} were there already, {self.failed} failed"


def run_batch(
    source: Path,
    output: Path,
    prompts: Prompts,
    options: GenerationOptions,
    folder: Path,
    *,
    keep_going: bool,
) -> Done:
    """Answer every line of `source` that `output` has no answer for.

    All lines are checked before the first is answered.

    Args:
        source: JSONL; each line has a `prompt` or `messages`, perhaps an `id`, and options.
        output: JSONL; one line per answer, as they come.
        prompts: makes prompts for the session.
        options: for lines that do not set them.
        folder: the bundle's.
        keep_going: record bad lines as errors instead of stopping at the first.

    Raises:
        UsageError: a file cannot be read, a line is bad, or `output` answers another file.
        PromptError: a prompt is empty or does not fit; names the line.
        ResourceError: `output` cannot be written, or is a device, a pipe or a folder.
        BackendError: the backend failed; the answers so far are in `output`.
    """
    from tqdm import tqdm

    ensure_replaceable(output)
    lines = list(_read(source, prompts, options))
    failures = [line for line in lines if isinstance(line, Failure)]
    if failures and not keep_going:
        raise _named(source, failures[0])
    requests = {line.id: line for line in lines if isinstance(line, Request)}
    kept = _resume(output, requests)
    if any(each.options.mode == "collab" for each in requests.values()):
        warn_if_uncertified(folder, prompts.session.manifest)
    todo = [line for line in lines if isinstance(line, Failure) or line.id not in kept]
    failed = 0
    try:
        with output.open("a", encoding="utf-8") as results:
            # disable=None draws the bar on a terminal only.
            for line in tqdm(todo, initial=len(kept), total=len(lines), unit="line", disable=None):
                value = _answer(line, prompts.session)
                if isinstance(value, Failure):
                    if not keep_going:
                        raise _named(source, value)
                    failed += 1
                    value = value.to_json()
                results.write(json.dumps(value) + "\n")
                results.flush()
    except OSError as error:
        raise ResourceError(f"{output} cannot be written: {error}") from error
    return Done(len(todo) - failed, len(kept), failed)


def _answer(line: Request | Failure, session: Session) -> dict[str, Any] | Failure:
    """Return the output line of an input line, or its failure."""
    if isinstance(line, Failure):
        return line
    try:
        completion = session.generate(line.prompt, **vars(line.options))
    except UsageError as error:  # such as sampling parameters that forbid every token
        return Failure(line.number, line.id, error)
    return {"id": line.id, "request": line.digest, **completion.to_json()}


def _read(
    source: Path, prompts: Prompts, options: GenerationOptions
) -> Iterator[Request | Failure]:
    """Yield the lines of the input without blank ones."""
    try:
        data = source.read_bytes()
    except OSError as error:
        raise UsageError(f"{source} cannot be read: {error.strerror}") from error
    first_line: dict[Id, int] = {}
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not line.strip():
            continue
        name: Id | None = None
        try:
            row = _parse(line)
            name = _id(row, number)
            if name in first_line:
                raise UsageError(f"the id {name!a} is that of line {first_line[name]} as well")
            request = _request(number, name, row, prompts, options)
        except (UsageError, PromptError) as error:
            yield Failure(number, name, error)
        else:
            first_line[name] = number
            yield request


def _parse(line: bytes) -> dict[str, Any]:
    return parse_json_object(line, max_bytes=_MAX_LINE_BYTES, error=UsageError)


def _id(row: Mapping[str, Any], number: int) -> Id:
    name = row.get("id", number)
    if isinstance(name, bool) or not isinstance(name, str | int):
        raise UsageError("the id is neither a text nor a whole number")
    return name


def _request(
    number: int, name: Id, row: dict[str, Any], prompts: Prompts, options: GenerationOptions
) -> Request:
    """Check one line, including the length of its prompt."""
    rest = {key: value for key, value in row.items() if key not in ("id", "prompt", "messages")}
    if ("prompt" in row) == ("messages" in row):
        raise UsageError("a line has either a prompt or messages")
    prompt: Prompt
    if "prompt" in row:
        if not isinstance(row["prompt"], str):
            raise UsageError("the prompt is no text")
        prompt = prompts.of_text(row["prompt"])
    else:
        prompt = row["messages"]
        if not isinstance(prompt, list) or not all(isinstance(each, dict) for each in prompt):
            raise UsageError("messages is no list of objects")
    own = options.updated(rest)
    session = prompts.session
    session.plan(prompt, **vars(own))
    facts = json.dumps([session.manifest.seal, prompt, own.to_json()], sort_keys=True)
    return Request(number, name, prompt, own, hashlib.sha256(facts.encode()).hexdigest()[:16])


def _resume(output: Path, requests: Mapping[Id, Request]) -> set[Id]:
    """Return the ids that the output answers; errors and an incomplete line are removed from it.

    Raises:
        UsageError: it has a line that is no answer to these requests.
    """
    try:
        data = output.read_bytes()
    except FileNotFoundError:
        return set()
    except OSError as error:
        raise UsageError(f"{output} cannot be read: {error.strerror}") from error
    *lines, half = data.split(b"\n")  # a whole line ends with a line break
    kept: list[bytes] = []
    ids: set[Id] = set()
    for number, line in enumerate(lines, 1):
        problem, name = _problem(line, requests)
        if problem is not None:
            raise UsageError(
                f"{output}, line {number} {problem}",
                hint="the input, an option or the bundle has changed: choose another --output",
            )
        if name is not None:
            ids.add(name)
            kept.append(line + b"\n")
    if half or len(kept) < len(lines):
        write_whole(output, b"".join(kept))
    return ids


def _problem(line: bytes, requests: Mapping[Id, Request]) -> tuple[str | None, Id | None]:
    """Return the problem of an output line or None, and the id that it answers, if any."""
    try:
        row = _parse(line)
    except UsageError as error:
        return f"is no answer: {error.message}", None
    if "error" in row:
        return None, None
    name = row.get("id")
    if not isinstance(name, str | int) or name not in requests:
        return f"answers {name!a}, which is not asked", None
    if row.get("request") != requests[name].digest:
        return f"answers {name!a} as it is not asked any more", None
    return None, name


def _named(source: Path, failure: Failure) -> CospecError:
    """Return the error of a line, with the line's number."""
    error = failure.error
    hint = error.hint or "--keep-going records bad lines as errors and answers the rest"
    return type(error)(f"{source}, line {failure.number}: {error.message}", hint=hint)
