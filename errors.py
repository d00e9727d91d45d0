"""Every error a user can cause, as one tree.

Each error says what is wrong and where; `hint` says what to do next. The command-line tools print
both and exit with `exit_code`, so that scripts can tell the kinds apart.
"""

from __future__ import annotations

from collections.abc import Callable


class CospecError(Exception):
    """Base of all errors that CoSpec raises on purpose.

    Args:
        message: what is wrong, and where.
        hint: what the user can do about it.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  -> {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[Callable[..., CospecError], tuple[object, ...]]:
        """Pickle by message and hint, whatever arguments a subclass takes: workers send errors back."""
        return _restored, (type(self), self.message, self.hint)


def _restored(kind: type[CospecError], message: str, hint: str | None) -> CospecError:
    error = kind.__new__(kind)
    CospecError.__init__(error, message, hint=hint)
    return error


class UsageError(CospecError):
    """An argument or a combination of arguments that cannot be honoured."""

    exit_code = 2


class BundleError(CospecError):
    """A bundle that is missing, damaged, tampered with or written by a newer version."""

    exit_code = 3


class BackendError(CospecError):
    """An execution backend that is not installed or that failed."""

    exit_code = 4


class GateError(CospecError):
    """A graph or a prompt that is not the one of the checkpoint."""

    exit_code = 5


class CheckpointError(CospecError):
    """A checkpoint that is missing, damaged, unsupported or does not fit its partner."""

    exit_code = 6


class ResourceError(CospecError):
    """Not enough memory or disk, or a folder that cannot be written."""

    exit_code = 7


class PromptError(CospecError):
    """A prompt that cannot be decoded: empty, or longer than the bundle's capacity."""

    exit_code = 8


class PromptTooLongError(PromptError):
    """A prompt with more tokens than the bundle's capacity."""


class MissingExtraError(BackendError):
    """A package that belongs to an optional extra is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package '{package}', which is not installed.",
            hint=f'pip install "cospec[{extra}]"',
        )
