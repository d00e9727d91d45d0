"""Who may use the server: API keys, and the names under which browsers may reach it."""

from __future__ import annotations

import hmac
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from .refusals import RefusedError

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
"""Values of the Host header, without port, that mean this machine and nothing else."""


def owner_of(authorization: str, keys: Sequence[str]) -> int:
    """Return whose request this is: the index of its API key, or 0 on a server without keys.

    The comparison takes the same time for every wrong key.

    Args:
        authorization: value of the header, or an empty text.
        keys: that the server accepts.

    Raises:
        RefusedError: the key is missing or wrong.
    """
    if not keys:
        return 0
    scheme, _, given = authorization.partition(" ")
    secret = given.strip().encode()
    matches = [hmac.compare_digest(secret, key.encode()) for key in keys]
    if scheme.lower() != "bearer" or True not in matches:
        raise RefusedError(
            "the API key is missing or wrong: send the header 'Authorization: Bearer KEY'",
            status=401,
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
            reason="unauthorized",
        )
    return matches.index(True)


class KnownHosts:
    """Middleware that refuses requests whose Host header names another machine.

    A web page can make its own name resolve to 127.0.0.1 (DNS rebinding). The browser then sends its
    requests to this server and lets the page read the answers; only the Host header shows it.

    Args:
        app: answers the requests that pass.
        names: lower-case values of the header without port that are served.
    """

    def __init__(self, app: ASGIApp, names: frozenset[str]) -> None:
        self._app = app
        self._names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it with 403. HTTP/1.0 needs no Host; browsers always send it."""
        host = Headers(scope=scope).get("host")
        if host is None or _without_port(host) in self._names:
            await self._app(scope, receive, send)
        else:
            refusal = RefusedError(
                f"this server is not {host[:100]!a}: on this machine, use localhost or 127.0.0.1; "
                "behind a proxy or under another name, start it with an API key",
                status=403,
                code="unknown_host",
                reason="unknown_host",
            )
            await refusal.response()(scope, receive, send)


def _without_port(host: str) -> str:
    name, colon, port = host.lower().rpartition(":")
    return name if colon and port.isdecimal() else host.lower()
