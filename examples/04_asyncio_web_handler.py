"""Streaming out of a web server: one engine, a session for each client, requests that go away.

`cospec-serve` is a whole server; this shows the few lines that put a session into your own.

Run:  pip install "cospec[serve,cpu]"
      python examples/04_asyncio_web_handler.py models/tiny
      curl -N http://127.0.0.1:8123/ask -d "Put 45 27 48 82 in order."
"""

import sys
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

import cospec


def application(engine_dir: str) -> Starlette:
    """Return the web application: POST /ask, the question as body."""
    shared = cospec.load(engine_dir)  # holds the weights, once

    async def ask(request: Request) -> Response:
        question = (await request.body()).decode("utf-8", errors="replace")
        session = shared.new_session()  # its caches only; sessions run side by side
        try:
            stream = session.stream([{"role": "user", "content": question}], max_tokens=64)
        except cospec.PromptError as error:
            return PlainTextResponse(f"{error}\n", status_code=400)

        async def pieces() -> AsyncIterator[str]:
            # Each round runs in a worker thread, so the loop stays free. A client that goes away
            # cancels this task, and that ends the generation before its next pass.
            async for piece in stream:
                yield piece.text

        return StreamingResponse(pieces(), media_type="text/plain; charset=utf-8")

    return Starlette(routes=[Route("/ask", ask, methods=["POST"])])


if __name__ == "__main__":
    import uvicorn

    uvicorn.run(application(sys.argv[1]), host="127.0.0.1", port=8123)
