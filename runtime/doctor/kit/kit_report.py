"""The report of a device: its schema, reading and writing it, and what it says of a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from ....errors import UsageError
from ...bundle.durable import write_json
from ...bundle.json_input import matching, read_json

MAX_BYTES = 4 << 20

Text = Annotated[str, Meta(max_length=4096)]
Name = Annotated[str, Meta(min_length=1, max_length=256)]
Seconds = Annotated[float, Meta(ge=0)]
Count = Annotated[int, Meta(ge=0)]
Status = Literal["passed", "failed", "not run"]
Day = Annotated[str, matching(r"^\d{4}-\d{2}-\d{2}$", "a date, such as 2026-11-30")]


class Failure(Struct, frozen=True, forbid_unknown_fields=True):
    """An error that ended a step.

    `kind` is the name of the error's class, such as BackendError.
    """

    kind: Name
    message: Text
    hint: Text | None = None


class Step(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A step on one bundle: a build, a check or a measurement. `facts` holds its numbers."""

    passed: bool
    seconds: Seconds
    facts: dict[str, Any] = {}
    failure: Failure | None = None


class Speed(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One way to decode; watts are means over the time that it ran, None without a sensor."""

    tokens: Count
    seconds: Seconds
    tokens_per_second: Annotated[float, Meta(ge=0)]
    median_ttft_seconds: Seconds
    median_tpot_seconds: Seconds
    tokens_per_target_pass: Annotated[float, Meta(ge=0)]
    watts: Annotated[float, Meta(ge=0)] | None = None
    joules_per_token: Annotated[float, Meta(ge=0)] | None = None


class BundleResult(Struct, forbid_unknown_fields=True, kw_only=True):
    """What was found about one bundle; steps are in the order in which they ran."""

    name: Name
    seal: Name
    lowering: Name
    precision: Name
    weights: tuple[Name, ...]
    capacity: Count
    status: Status
    reason: Text | None = None
    steps: dict[str, Step] = {}
    speed: dict[str, Speed] = {}
    cuda_graphs: dict[str, Any] = {}


class Environment(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The machine. Runs with equal environments are parts of one."""

    gpu: Name
    sm: Count
    memory_bytes: Count
    unified_memory: bool
    module: Name
    tensorrt: Name
    cuda_runtime: Count
    cuda_driver: Count
    jetson: Text | None
    platform: Text
    python: Name
    cospec: Name


class Report(Struct, forbid_unknown_fields=True, kw_only=True):
    """All that a device said.

    `simulated` labels a run that no GPU had a part in. `findings` are the doctor's, as
    [level, topic, message].
    """

    report_version: Literal[2]
    simulated: bool
    status: Literal["passed", "failed", "skipped"]
    date: Day
    seconds: Seconds
    reason: Text | None = None
    environment: Environment | None = None
    power_source: Text | None = None
    findings: tuple[tuple[Name, Name, Text], ...] = ()
    bundles: dict[str, BundleResult] = {}

    @property
    def failures(self) -> list[tuple[str, str, Step]]:
        """Steps that did not pass, as (bundle, step, result)."""
        return [
            (name, title, step)
            for name, bundle in self.bundles.items()
            for title, step in bundle.steps.items()
            if not step.passed
        ]


def read_report(path: Path) -> Report:
    """Read a report that somebody else may have written.

    Raises:
        UsageError: it is not one; names the field.
    """
    return read_json(
        path,
        Report,
        max_bytes=MAX_BYTES,
        error=UsageError,
        hint="cospec-kit writes reports; this is not one, or one of another version",
    )


def write_report(report: Report, path: Path) -> None:
    """Write a report, whole or not at all.

    Raises:
        ResourceError: the file cannot be written.
    """
    write_json(path, msgspec.to_builtins(report))
