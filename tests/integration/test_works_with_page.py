"""The programs in docs/works-with.md run: those of a library only where it is installed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from http_server import serving

import cospec
from cospec.models.tiny_pair import path

PAGE = Path(__file__).resolve().parents[2] / "docs/works-with.md"
PROGRAMS = dict(
    re.findall(
        r"^## (\S+)\n(?:(?!## )[^\n]*\n)*?```python\n(.*?)^```", PAGE.read_text(), re.M | re.S
    )
)
NEEDED = {
    "transformers": "transformers",
    "LangChain": "langchain_openai",
    "LlamaIndex": "llama_index.llms.openai_like",
}


def test_every_program_is_found():
    assert set(PROGRAMS) == set(NEEDED)


@pytest.mark.parametrize("library", sorted(NEEDED))
def test_a_program_of_the_page_runs(library, tiny_pair_bundle, monkeypatch, capsys):
    pytest.importorskip(NEEDED[library], reason=f"{NEEDED[library]} is not installed")
    program = PROGRAMS[library]
    program = program.replace("./my-8b", str(path("target")))
    program = program.replace("bundles/mine", str(tiny_pair_bundle))
    if "http://127.0.0.1:8000/v1" not in program:
        exec(program, {})
        assert "Answer:" in capsys.readouterr().out
        return
    with serving([cospec.load(tiny_pair_bundle)]) as served:
        exec(program.replace("http://127.0.0.1:8000/v1", served.url), {})
    assert "171" in capsys.readouterr().out
