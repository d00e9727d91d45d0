"""The tiny bundle, and what the library answers with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from commands_run import PROMPT

import cospec
from cospec.runtime.decoding.completion import Completion


@pytest.fixture(scope="module")
def root(tiny_bundle: Any) -> Path:
    return tiny_bundle.root


@pytest.fixture(scope="module")
def chat(root: Path) -> Completion:
    """What the API makes of PROMPT as a chat message, with --max-tokens 12."""
    return cospec.load(root).generate([{"role": "user", "content": PROMPT}], max_tokens=12)


@pytest.fixture(scope="module")
def raw(root: Path) -> Completion:
    """The same for PROMPT as plain text."""
    return cospec.load(root).generate(PROMPT, max_tokens=12)
