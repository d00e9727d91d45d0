"""The options of a command that say which engines run a bundle, and on what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Any, Literal, get_args

import click

from ..decoding.placement import Backend
from ..decoding.session import DrafterName, Session, load
from .common import at_least

Command = Callable[..., Any]
Provider = Literal["auto", "cpu", "cuda"]
Pool = Literal["shared", "own"]


@dataclass(frozen=True)
class EngineSettings:
    """What a user chooses of the arguments of `cospec.load`."""

    drafter: DrafterName
    backend: Backend
    threads: int | None
    pool: Pool
    provider: Provider

    def __post_init__(self) -> None:
        """Refuse a number that makes no sense before anything is read."""
        at_least("--threads", self.threads, 1)

    def load(self, folder: Path) -> Session:
        """Open the bundle at `folder`, or the one bundle below it; errors as `cospec.load`."""
        from ..engines.onnxruntime import OrtOptions

        options = OrtOptions(
            threads=self.threads, shared_pool=self.pool == "shared", provider=self.provider
        )
        return load(folder, drafter=self.drafter, backend=self.backend, options=options)


_OPTIONS = (
    click.option(
        "--drafter",
        type=click.Choice(get_args(DrafterName)),
        default="auto",
        show_default=True,
        help="Where proposals come from; auto is the draft model, or ngram without one.",
    ),
    click.option(
        "--backend",
        type=click.Choice(get_args(Backend)),
        default="auto",
        show_default=True,
        help="auto: TensorRT for a bundle exported with --trt, where it and a GPU are there. mixed: "
        "the target on TensorRT, the draft on ONNX Runtime. The first run on TensorRT builds the "
        "engines.",
    ),
    click.option("--threads", type=int, help="Threads of a pass. Default: one a physical core."),
    click.option(
        "--pool",
        type=click.Choice(get_args(Pool)),
        default="own",
        show_default=True,
        help="Threads of ONNX Runtime: a set for each model, which sleep between passes; or one for "
        "both, which spins on after a pass: faster, on a machine that has nothing else to do.",
    ),
    click.option(
        "--provider",
        type=click.Choice(get_args(Provider)),
        default="auto",
        show_default=True,
        help="Execution provider of ONNX Runtime.",
    ),
)


def engine_options(command: Command) -> Command:
    """Add the options to a command, which gets them as one argument `engines`."""

    @wraps(command)
    def gathered(**given: Any) -> Any:
        chosen = {each.name: given.pop(each.name) for each in fields(EngineSettings)}
        return command(engines=EngineSettings(**chosen), **given)

    decorated: Command = gathered
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated
