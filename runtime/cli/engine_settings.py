"""The options of a command that choose how the engines of a bundle run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Any, Literal, get_args

import click

from ..decoding.placement import Backend
from ..decoding.session import Session, load
from .common import at_least

Command = Callable[..., Any]
Provider = Literal["auto", "cpu", "cuda"]
Pool = Literal["shared", "own"]


@dataclass(frozen=True)
class EngineSettings:
    """The arguments of `cospec.load` that the command line sets."""

    drafter: str
    backend: Backend
    threads: int | None
    pool: Pool
    provider: Provider

    def __post_init__(self) -> None:
        """Check the number of threads before anything is read."""
        at_least("--threads", self.threads, 1)

    def load(self, folder: Path) -> Session:
        """Open the bundle at `folder`, or the one bundle below it; errors as `cospec.load`."""
        from ..engines.onnxruntime import OrtOptions

        here = str(Path.cwd())
        if ":" in self.drafter and here not in sys.path:
            sys.path.insert(0, here)  # as `python -m` does, so that a drafter's module is found
        options = OrtOptions(
            threads=self.threads, shared_pool=self.pool == "shared", provider=self.provider
        )
        return load(folder, drafter=self.drafter, backend=self.backend, options=options)


_OPTIONS = (
    click.option(
        "--drafter",
        metavar="NAME",
        default="auto",
        show_default=True,
        help="What drafts: model, ngram (lookup), combined (both), none, an installed drafter, or "
        "module:Class for your own. auto is model, or ngram if the bundle has no draft.",
    ),
    click.option(
        "--backend",
        type=click.Choice(get_args(Backend)),
        default="auto",
        show_default=True,
        help="auto: TensorRT if the bundle was exported with --trt and TensorRT and a GPU are found, "
        "else ONNX Runtime. mixed: the target on TensorRT, the draft on ONNX Runtime. The first run on "
        "TensorRT builds the engines, which takes minutes.",
    ),
    click.option(
        "--threads", type=int, help="Threads per forward pass. Default: one per physical core."
    ),
    click.option(
        "--pool",
        type=click.Choice(get_args(Pool)),
        default="own",
        show_default=True,
        help="Thread pools of ONNX Runtime. own: one per model, which sleeps between passes. shared: "
        "one for both models, which keeps spinning after a pass; faster on a machine that runs nothing "
        "else.",
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
    """Add the options to a command, which receives them as one argument `engines`."""

    @wraps(command)
    def gathered(**given: Any) -> Any:
        chosen = {each.name: given.pop(each.name) for each in fields(EngineSettings)}
        return command(engines=EngineSettings(**chosen), **given)

    decorated: Command = gathered
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated
