"""The progress bar of an export."""

from __future__ import annotations

import sys
from typing import Any

from .pipeline import ExportOptions, stages


class StageBar:
    """A progress bar over the stages of an export; silent when stderr is not a terminal."""

    def __init__(self, options: ExportOptions, *, engines: bool) -> None:
        self._options = options
        self._engines = engines
        self._bar: Any = None

    def __enter__(self) -> StageBar:
        return self

    def begin(self, stage: str) -> None:
        """Show `stage` as the current one."""
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(
                total=stages(self._options, engines=self._engines),
                disable=not sys.stderr.isatty(),
                bar_format="{desc:<32} {bar} {n}/{total} [{elapsed}]",
            )
        else:
            self._bar.update()
        self._bar.set_description_str(stage)

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        if self._bar is not None:
            if error is None:
                self._bar.update()
            self._bar.close()
