"""Calls into transformers: imported late, kept quiet, its errors turned into ours."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, CospecError, MissingExtraError, ResourceError


@contextlib.contextmanager
def blaming(path: Path, what: str) -> Iterator[None]:
    """Turn any error of transformers into a CheckpointError of one line that names the file."""
    try:
        yield
    except CospecError:
        raise
    except MemoryError as error:
        raise ResourceError(f"Out of memory while reading {path}.") from error
    except BaseException as error:
        # A panic of a Rust library is not an Exception. KeyboardInterrupt and the like are passed on.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise CheckpointError(f"{path}: {what} ({reason}).") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers and accelerate, and show progress bars on a terminal only."""
    logging = transformers_class("logging")
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    # Says on a terminal that weights stay on the disk, which is what we ask for.
    accelerate = getLogger("accelerate")
    before = accelerate.level
    accelerate.setLevel(ERROR)
    shown = sys.stderr.isatty()
    try:
        if shown:
            yield
            return
        logging.disable_progress_bar()
        # No setting turns off the progress bar of the GGUF conversion.
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(level)
        accelerate.setLevel(before)
        if bars:
            logging.enable_progress_bar()


def transformers_class(name: str) -> Any:
    """Return a class of transformers, or raise the error that names the extra to install."""
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError("transformers", "export", "Opening a checkpoint") from error
    return getattr(transformers, name)
