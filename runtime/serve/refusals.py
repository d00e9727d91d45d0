"""Why a request gets no answer, in OpenAI's form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import CospecError, PromptError, PromptTooLongError, UsageError

INVALID = "invalid_request_error"


class RefusedError(UsageError):
    """A request that is not answered.

    Args:
        message: what is wrong with it, or with the moment.
        status: of the HTTP response.
        kind: OpenAI's `type` of the error.
        param: the field that is at fault, if it is one.
        code: OpenAI's `code`, for programs.
        headers: of the HTTP response.
        reason: under which the metrics count it.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = INVALID,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        reason: str = "invalid",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.param = param
        self.code = code
        self.headers = dict(headers or {})
        self.reason = reason

    def to_json(self) -> dict[str, Any]:
        """Return OpenAI's error object."""
        return {
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            }
        }


def refusal_of(error: CospecError) -> RefusedError:
    """Return any error of the runtime as a refusal: the client's fault is a 400, ours a 500."""
    if isinstance(error, RefusedError):
        return error
    text = error.message if error.hint is None else f"{error.message}. {error.hint}"
    if isinstance(error, PromptTooLongError):
        return RefusedError(text, code="context_length_exceeded", reason="context_length")
    if isinstance(error, (PromptError, UsageError)):
        return RefusedError(text)
    return RefusedError(text, status=500, kind="server_error", reason="server_error")


def queue_full(waiting: int, retry_after: int) -> RefusedError:
    """Too many requests wait already."""
    return RefusedError(
        f"{waiting} requests are waiting already; try again later",
        status=429,
        kind="rate_limit_error",
        code="queue_full",
        headers={"Retry-After": str(retry_after)},
        reason="queue_full",
    )


def shutting_down() -> RefusedError:
    """The server is about to end."""
    return RefusedError(
        "the server is shutting down",
        status=503,
        kind="service_unavailable",
        code="shutting_down",
        headers={"Connection": "close"},
        reason="shutting_down",
    )


def timed_out(seconds: float, *, queued: bool) -> RefusedError:
    """The answer was not there in time."""
    where = "the request waited for its turn" if queued else "the answer took"
    return RefusedError(
        f"{where} longer than the {seconds:g} seconds that a request may take here; "
        "ask for fewer tokens, or later",
        status=504,
        kind="timeout",
        code="timeout",
        # The same request would time out again, so clients are told not to repeat it by themselves.
        headers={"x-should-retry": "false"},
        reason="timeout",
    )
