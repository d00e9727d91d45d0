"""The body of a request, read within bounds."""

from __future__ import annotations

import asyncio

from starlette.requests import Request as HttpRequest

from .refusals import RefusedError

DRAINED_BYTES = 64 << 20
"""Bytes that are read of a body that is too large: a client that is still sending sees no answer."""


async def read_body(http: HttpRequest, limit: int, timeout: float) -> bytes:
    """Return the body of a request.

    Args:
        http: the request.
        limit: of the body, in bytes.
        timeout: seconds in which it must have arrived.

    Raises:
        RefusedError: it is not JSON, too large or too slow.
        ClientDisconnect: the client left.
    """
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # Web pages of other origins may send any other type without asking first.
        raise RefusedError(
            f"the Content-Type is {kind[:60]!a}, but must be 'application/json'", status=415
        )
    declared = http.headers.get("content-length", "")
    if "expect" in http.headers and declared.isdecimal() and int(declared[:20]) > limit:
        raise _too_large(limit)  # the client waits for an answer before it sends the body
    try:
        return await asyncio.wait_for(_read(http, limit), timeout)
    except asyncio.TimeoutError:
        raise RefusedError(
            f"the body did not arrive within {timeout:g} seconds",
            status=408,
            headers={"Connection": "close"},
        ) from None


async def _read(http: HttpRequest, limit: int) -> bytes:
    data = bytearray()
    size = 0
    async for chunk in http.stream():
        size += len(chunk)
        if size <= limit:
            data += chunk
        elif size > DRAINED_BYTES:
            break
    if size > limit:
        raise _too_large(limit)
    return bytes(data)


def _too_large(limit: int) -> RefusedError:
    return RefusedError(
        f"the body is larger than {limit} bytes",
        status=413,
        headers={"Connection": "close"},
        reason="too_large",
    )
