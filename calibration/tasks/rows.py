"""Read the rows of a benchmark file: JSONL, JSON, CSV (each also as .gz) or Parquet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ...errors import MissingExtraError, UsageError
from ...runtime.bundle.files import format_bytes
from .bad_lines import BadLines
from .jsonl import json_rows, opened

MAX_FILE_BYTES = 1 << 30
"""Of a JSON or CSV file, which is held in memory whole."""

_LISTS = ("Data", "data", "examples", "rows")

Row = dict[str, Any]


def read_rows(path: Path, bad: BadLines) -> Iterator[tuple[int, str, Row]]:
    """The rows of a file as (number from 1, "line" or "item", row).

    A JSON file is a list of objects, or an object that holds one under "Data" (TriviaQA), "data",
    "examples" or "rows"; a CSV file has a header. Parquet needs pyarrow (the extra `hub`).

    Raises:
        UsageError: the file is missing, damaged or of another form.
        MissingExtraError: a Parquet file, and pyarrow is not installed.
    """
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if suffix == ".parquet":
        yield from _parquet(path)
        return
    with opened(path) as stream:
        if suffix == ".csv":
            yield from _csv(path, stream)
        elif suffix == ".json" and not _is_really_jsonl(stream):
            yield from _json(path, stream, bad)
        else:
            for number, row in json_rows(stream, bad):
                yield number, "line", row


def _is_really_jsonl(stream: IO[bytes]) -> bool:
    """Whether the first line is an object of its own: many files of lines are called .json."""
    first = stream.readline(1 << 20)
    stream.seek(0)
    try:
        row = json.loads(first)
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and not any(isinstance(row.get(key), list) for key in _LISTS)


def _json(path: Path, stream: IO[bytes], bad: BadLines) -> Iterator[tuple[int, str, Row]]:
    try:
        value = json.loads(_whole(path, stream))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not valid JSON ({error}).") from None
    if isinstance(value, dict):
        value = next((value[key] for key in _LISTS if isinstance(value.get(key), list)), None)
    if not isinstance(value, list):
        raise UsageError(f"{path}: neither a list of objects nor an object that holds one.")
    for number, row in enumerate(value, 1):
        if isinstance(row, dict):
            yield number, "item", row
        else:
            bad.found(number, "not a JSON object", "item")


def _csv(path: Path, stream: IO[bytes]) -> Iterator[tuple[int, str, Row]]:
    try:
        text = _whole(path, stream).decode("utf-8-sig")
        for number, row in enumerate(csv.DictReader(io.StringIO(text, newline="")), 1):
            yield number, "item", {key: value for key, value in row.items() if key}
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path}: not a CSV file in UTF-8 ({error}).") from None


def _whole(path: Path, stream: IO[bytes]) -> bytes:
    data = stream.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise UsageError(f"{path}: larger than {format_bytes(MAX_FILE_BYTES)}.")
    return data


def _parquet(path: Path) -> Iterator[tuple[int, str, Row]]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise MissingExtraError("pyarrow", "hub", f"Reading {path}") from None
    if not path.is_file():
        raise UsageError(f"{path}: no such file.")
    try:
        rows = parquet.read_table(path).to_pylist()
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        raise UsageError(f"{path}: not a readable Parquet file ({error}).") from None
    for number, row in enumerate(rows, 1):
        yield number, "item", row
