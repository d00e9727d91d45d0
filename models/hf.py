"""How transformers is called: imported late, kept quiet, and its errors made ours."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, CospecError, MissingExtraError, ResourceError


@contextlib.contextmanager
def blaming(path: Path, what: str) -> Iterator[None]:
    """Turn whatever transformers raises about a file into one line that names the file."""
    try:
        yield
    except CospecError:
        raise
    except MemoryError as error:
        raise ResourceError(f"Out of memory while reading {path}.") from error
    except BaseException as error:
        # A panic of a Rust library is no Exception; everything else that is none goes on its way.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise CheckpointError(f"{path}: {what} ({reason}).") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence reports, which our own errors replace; show progress bars on a terminal only."""
    logging = transformers_class("logging")
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    shown = sys.stderr.isatty()
    try:
        if shown:
            yield
            return
        logging.disable_progress_bar()
        # The GGUF conversion has a bar that no setting reaches.
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def transformers_class(name: str) -> Any:
    """One class of transformers, or the error that names the extra."""
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError("transformers", "export", "Opening a checkpoint") from error
    return getattr(transformers, name)
