"""The last resort for what goes wrong while a request is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .refusals import RefusedError


class Containment:
    """Middleware that answers every failure with a refusal in OpenAI's form.

    Args:
        app: answers requests.
        refused: returns the refusal of an error, and logs what is the server's own fault.
    """

    def __init__(self, app: ASGIApp, refused: Callable[[BaseException], RefusedError]) -> None:
        self._app = app
        self._refused = refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; a failure in the middle of an answer can only close the connection."""
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except (asyncio.CancelledError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # panics of libraries written in Rust are no Exception
            refusal = self._refused(error)
            if started:
                raise
            await refusal.response()(scope, receive, send)
