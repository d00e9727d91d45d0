"""A progress bar for each build of an engine, which takes minutes on a device."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .builder import Progress


@contextmanager
def build_bars() -> Iterator[Callable[[str], Progress]]:
    """Yield the function that `prepare_engines` calls before each build; silent without a terminal."""
    from tqdm import tqdm

    bars: list[Any] = []

    def close() -> None:
        while bars:
            bars.pop().close()

    def begin(role: str) -> Progress:
        close()
        bar = tqdm(
            total=1.0,
            desc=f"building the {role} engine",
            disable=not sys.stderr.isatty(),
            bar_format="{desc:<32} {bar} {percentage:3.0f}% [{elapsed}]",
        )
        bars.append(bar)
        return lambda share: bar.update(share - bar.n)

    try:
        yield begin
    finally:
        close()
