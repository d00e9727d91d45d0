"""Refusals: errors in OpenAI's form, each with its HTTP status."""

from __future__ import annotations

import json
from collections.abc import Mapping

from starlette.responses import Response

from ...errors import CospecError, MissingExtraError, PromptError, PromptTooLongError, UsageError
from ..sampling.declaration import OptionError
from ..text.messages import MessageError

INVALID = "invalid_request_error"
LONGEST_MESSAGE = 2000
"""Characters of a message; a chat template may repeat whole conversations in its errors."""


class RefusedError(UsageError):
    """A request that is refused.

    Args:
        message: why.
        status: of the HTTP response.
        kind: OpenAI's `type` of the error.
        param: the field that caused it, if there is one.
        code: OpenAI's `code`, for programs.
        headers: of the HTTP response.
        reason: label under which the metrics count it.
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

    def to_json(self) -> bytes:
        """Return OpenAI's error object as JSON in ASCII: it may repeat any text of a client."""
        facts = {
            "message": self.message[:LONGEST_MESSAGE],
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }
        return json.dumps({"error": facts}, separators=(",", ":")).encode("ascii")

    def response(self) -> Response:
        """Return the refusal as an HTTP response."""
        return Response(self.to_json(), self.status, self.headers, "application/json")


def refusal_of(error: BaseException) -> RefusedError:
    """Return any error as a refusal: the client's fault is a 400, the server's own a 500."""
    if isinstance(error, RefusedError):
        return error
    if not isinstance(error, CospecError):  # its text is no business of the client
        return _server_error("the server failed; its log says why")
    text = text_of(error)
    if isinstance(error, PromptTooLongError):
        # Clients that shorten prompts, such as litellm's, look for these words.
        text = f"the prompt is longer than the model's context length: {text}"
        return RefusedError(text, code="context_length_exceeded", reason="context_length")
    if isinstance(error, (PromptError, UsageError, MissingExtraError)):
        field = error.option if isinstance(error, OptionError) else None
        return RefusedError(text, param=error.where if isinstance(error, MessageError) else field)
    return _server_error(text)


def _server_error(text: str) -> RefusedError:
    return RefusedError(text, status=500, kind="server_error", reason="server_error")


def text_of(error: CospecError) -> str:
    """Return an error's message and hint as one text."""
    return error.message if error.hint is None else f"{error.message}. {error.hint}"


def unknown_model(name: str, served: str) -> RefusedError:
    """Refuse a request for another model."""
    return RefusedError(
        f"the model {name[:100]!a} is not here; this server has '{served}'",
        status=404,
        param="model",
        code="model_not_found",
    )


def queue_full(waiting: int, retry_after: int) -> RefusedError:
    """Return the refusal of a request for which the queue has no room."""
    return RefusedError(
        f"the queue is full: {waiting} requests are waiting; try again later",
        status=429,
        kind="rate_limit_error",
        code="queue_full",
        headers={"Retry-After": str(retry_after)},
        reason="queue_full",
    )


def shutting_down() -> RefusedError:
    """Return the refusal of a request while the server is shutting down."""
    return RefusedError(
        "the server is shutting down",
        status=503,
        kind="service_unavailable",
        code="shutting_down",
        headers={"Connection": "close"},
        reason="shutting_down",
    )


def timed_out(seconds: float, *, queued: bool) -> RefusedError:
    """Return the refusal of a request that took too long."""
    where = "the request waited in the queue" if queued else "the answer took"
    return RefusedError(
        f"{where} longer than the {seconds:g} seconds that a request may take here; "
        "ask for fewer tokens, or later",
        status=504,
        kind="timeout",
        code="timeout",
        # The same request would time out again, so clients should not repeat it automatically.
        headers={"x-should-retry": "false"},
        reason="timeout",
    )
