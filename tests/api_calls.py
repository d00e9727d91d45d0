"""A question, and how the server's tests ask it."""

from __future__ import annotations

from typing import Any

import httpx2 as httpx
from http_server import Served

QUESTION = "What is 12 + 30?"
MESSAGES = [{"role": "user", "content": QUESTION}]
PROMPT = f"Q: {QUESTION}\nA:"


def post(served: Served, path: str, body: Any, **settings: Any) -> httpx.Response:
    """Send a body to a path below the API's address."""
    return httpx.post(f"{served.url}/{path}", json=body, timeout=60, **settings)
