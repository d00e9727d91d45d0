"""The template language is transformers': both render each construct to the same text, or refuse it.

The templates in data/chat_templates.txt are written for these tests; the constructs are those that
real templates use.
"""

from __future__ import annotations

from datetime import datetime
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from cospec.runtime.text.template import ChatTemplate, frozen_clock

theirs = pytest.importorskip("transformers.utils.chat_template_utils")

SPECIAL = {
    "bos_token": "<s>",
    "eos_token": "<|end\U0001f600|>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "sep_token": "<sep>",
    "cls_token": "<cls>",
    "mask_token": "<mask>",
    "image_token": "<image>",
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The <weather> of a \"city\" & more, it's 'exact'",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": ["string", "null"], "enum": ["Köln", "\U0001d54f"]}
                },
                "required": ["city"],
            },
        },
    }
]
CALL = {
    "id": "call12345",
    "type": "function",
    "function": {
        "name": "weather",
        "arguments": {"city": "Köln", "n": 1.5, "deep": [1, None, True]},
    },
}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "user": [{"role": "user", "content": "hello"}],
    "system": [{"role": "system", "content": " Be brief.\n"}, {"role": "user", "content": "hello"}],
    "turns": [
        {"role": "user", "content": "  a \n"},
        {"role": "assistant", "content": "\n b "},
        {"role": "user", "content": "c"},
    ],
    "quotes": [{"role": "user", "content": "<b>\"x\" & 'y'</b> {{ bos_token }} {% if %}"}],
    "unicode": [{"role": "user", "content": "👩‍👩‍👧 \U0001d54f e\u0301 你好 \u202e\u2028 \x00"}],
    "empty": [{"role": "user", "content": ""}],
    "trailing": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "<think>h</think> b  "},
    ],
    "reasoning": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "reasoning": "why <&>"},
        {"role": "user", "content": "c", "name": "Ann"},
    ],
    "calls": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": '{"t": 3}', "tool_call_id": "call12345"},
        {"role": "assistant", "content": "3 <degrees>"},
    ],
    "parts": [
        {"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}]}
    ],
}
LOOP = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
DATA = Path(__file__).parents[2] / "data" / "chat_templates.txt"
SECTIONS = DATA.read_text(encoding="utf-8").split("===== ")[1:]
TEMPLATES = {name: text[:-1] for name, _, text in (part.partition("\n") for part in SECTIONS)}
ARGUMENTS: list[dict[str, Any]] = [
    {"add_generation_prompt": True},
    {"add_generation_prompt": False, "tools": TOOLS, "template_args": {"enable_thinking": False}},
    {"continue_final_message": True, "documents": [{"title": "T <1>", "text": "x & y"}]},
    {"continue_final_message": "reasoning", "template_args": {"bos_token": "<mine>"}},
]


class Clock(datetime):
    @classmethod
    def now(cls, tz: Any = None) -> datetime:
        return datetime(2026, 2, 3, 4, 5, 6)


def expected(source: str, messages: list[dict[str, Any]], arguments: dict[str, Any]) -> str:
    """What transformers renders; `apply_chat_template` drops empty keys before it does."""
    arguments = dict(arguments)
    variables = {**SPECIAL, **arguments.pop("template_args", {})}
    chat = [{key: value for key, value in m.items() if value is not None} for m in messages]
    texts, _ = theirs.render_jinja_template([chat], chat_template=source, **arguments, **variables)
    return texts[0]


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_construct_renders_as_in_transformers(name, monkeypatch):
    monkeypatch.setattr(theirs, "datetime", Clock)
    source, rendered = TEMPLATES[name], 0
    for messages, arguments in product(CONVERSATIONS.values(), ARGUMENTS):
        try:
            text = expected(source, messages, arguments)
        except Exception:
            with pytest.raises(Exception), frozen_clock(Clock.now()):  # noqa: B017
                ChatTemplate(source, SPECIAL).render(messages, **arguments)
            continue
        with frozen_clock(Clock.now()):
            assert ChatTemplate(source, SPECIAL).render(messages, **arguments) == text
        rendered += 1
    refused_always = {
        *(
            "break in generation",
            "tojson of nothing",
            "hidden names in namespaces",
            "changed lists",
        ),
        *("hidden names set later", "changed messages", "hidden attributes", "too long a range"),
        *("not a template", "unknown tag", "unknown filter"),
    }
    assert (rendered == 0) == (name in refused_always)


@pytest.mark.parametrize(
    ("source", "variables"),
    [
        (LOOP, set()),
        ("{{ bos_token }}{{ tools }}{{ range(3) }}{{ strftime_now('%Y') }}", set()),
        ("{% if enable_thinking %}{{ date }}{% endif %}", {"enable_thinking", "date"}),
        ("{% set x = 1 %}{{ x }}{% macro m(y) %}{{ y }}{{ z }}{% endmacro %}", {"z"}),
    ],
)
def test_the_variables_of_a_template(source, variables):
    assert ChatTemplate(source, SPECIAL).variables() == variables


def test_a_template_sees_the_clock_of_the_machine():
    template = ChatTemplate("{{ strftime_now('%Y') }}", {})
    assert template.render([]) == str(datetime.now().year)
