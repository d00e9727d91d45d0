"""Tokenizers, templates and manifests that were made to harm; `hostile_bundles` tries them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Reseal = Callable[[Path], None]
Change = Callable[[Path], object]

TEMPLATES = {
    "a power": "{{ 10**(10**8) }}",
    "a power of powers": "{{ 9**9**9**9 }}",
    "a wide format": "{{ '%2000000000d' % 1 }}",
    "a long product": "{{ 'a' * 10**9 }}",
    "a product of products": "{{ ('a' * 10**5) * 10**5 }}",
    "nested ranges": "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
    "a centred text": "{{ 'a'.center(10**9) }}",
    "zeros in front": "{{ '1'.zfill(10**9) }}",
    "a format method": "{{ '{:>2000000000}'.format(1) }}",
    "a macro that calls itself": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "a doubling text": "{% set n = namespace(t='a') %}{% for i in range(60) %}"
    "{% set n.t = n.t + n.t %}{% endfor %}{{ n.t }}",
    "a doubling list": "{% set n = namespace(t=[1]) %}{% for i in range(60) %}"
    "{% set n.t = n.t + n.t %}{% endfor %}{{ n.t }}",
    "a join": "{{ (['a' * 99999] * 99999) | join('b' * 99999) }}",
    "a replacement": "{{ ('a' * 99999).replace('a', 'b' * 99999) }}",
    "an indent": "{{ ('\\n' * 99999) | indent(99999) }}",
    "a batch": "{{ range(99999) | batch(1, 'a' * 99999) | list }}",
    "the class of a text": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals of a function": "{{ raise_exception.__globals__ }}",
    "an import": "{% import 'os' as os %}{{ os }}",
    "an include": "{% include '/etc/passwd' %}",
    "deep nesting": "{% if 1 %}" * 3000 + "x" + "{% endif %}" * 3000,
    "deep brackets": "{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}",
    "a syntax error": "{% for %}",
    "no text": "",
    "half a character": b"\xff\xfe",
    "a number of digits": "{{ " + "9" * 20_000 + " }}",
    "an error": "{{ 1 + 'a' }}",
    "a refusal": "{{ raise_exception('no') }}",
    "a division": "{{ 1 / 0 }}",
    "a date": "{{ strftime_now('%Y' * 99999) }}",
}


def template_kinds(reseal: Reseal) -> dict[str, Change]:
    """Return bundles with hostile chat templates."""

    def write(text: str | bytes) -> Change:
        def change(root: Path) -> None:
            data = text if isinstance(text, bytes) else text.encode()
            (root / "chat_template.jinja").write_bytes(data)
            reseal(root)

        return change

    return {f"template: {name}": write(text) for name, text in TEMPLATES.items()}


def _replace(text: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": text}, "content": content}


def _split(regex: str) -> dict[str, Any]:
    pattern = {"Regex": regex}
    return {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}


FIELDS: dict[str, list[Any]] = {
    "normalizer": [
        {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
        {"type": "Precompiled", "precompiled_charsmap": "/////w=="},
        {"type": "Sequence", "normalizers": [_replace("2", "22")] * 60},
        _replace("", "x"),
        _replace("2", "x" * 1_000_000),
        {"type": "Nothing"},
        {"type": "Prepend", "prepend": "x" * 1_000_000},
        [],
    ],
    "pre_tokenizer": [
        _split("(x+x+)+y|(.+.+)+zz"),
        _split("(a*)*b"),
        _split("("),
        _split(""),
        {"type": "Nothing"},
        {"type": "Sequence", "pretokenizers": [_split(".")] * 1000},
    ],
    "post_processor": [
        {"type": "Nothing"},
        {"type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": {}},
        {"type": "BertProcessing", "sep": ["x", 1 << 40], "cls": ["y", -1]},
    ],
    "decoder": [
        {"type": "Nothing"},
        _replace("", "x"),
        {"type": "Sequence", "decoders": [_replace("2", "22")] * 60},
    ],
    "truncation": [{"max_length": 1, "strategy": "LongestFirst", "stride": 5, "direction": "Left"}],
    "padding": [{"strategy": {"Fixed": 1 << 40}, "direction": "Left"}],
    "added_tokens": [
        [{"id": 1 << 40, "content": "x", "special": True}],
        [{"id": -1, "content": "x", "special": True}],
        [{"id": 0, "content": "", "special": True}],
        "nonsense",
    ],
    "model": [
        {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "?"},
        {"type": "Unigram", "unk_id": None, "vocab": [["a", 0.0]]},
        {"type": "Unigram", "unk_id": 99, "vocab": [["a", 0.0]]},
        {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "?"},
        {"type": "BPE", "vocab": {"a": 0, "b": 1 << 40}, "merges": []},
        {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]},
        {"type": "BPE", "vocab": {}, "merges": []},
        {"type": "Nothing"},
        None,
    ],
    "version": ["9.9", None, 1],
}


def tokenizer_kinds(reseal: Reseal) -> dict[str, Change]:
    """Return bundles with hostile tokenizers."""

    def set_field(field: str, value: Any) -> Change:
        def change(root: Path) -> None:
            path = root / "tokenizer.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
            reseal(root)

        return change

    def raw(data: bytes) -> Change:
        def change(root: Path) -> None:
            (root / "tokenizer.json").write_bytes(data)
            reseal(root)

        return change

    found = {
        f"tokenizer: {field} {number}": set_field(field, value)
        for field, values in FIELDS.items()
        for number, value in enumerate(values)
    }
    broken = {"empty": b"", "a list": b"[]", "deep": b"[" * 200_000, "text": b"nonsense"}
    return found | {f"tokenizer: {name}": raw(data) for name, data in broken.items()}


def manifest_kinds(edit: Callable[[Path, list[Any], Any], object]) -> dict[str, Change]:
    """Return bundles with each field of the manifest replaced by values of other kinds and sizes."""
    values = [None, -1, 0, 1 << 24, 1 << 62, 0.5, "", "x", [], {}]
    paths: list[list[Any]] = [
        *(["capacity"], ["vocab_size"], ["summary_top"], ["lowering"], ["precision"]),
        *(["generation", "max_tokens"], ["generation", "prefill_chunk"]),
        *(["generation", "num_draft_tokens"], ["models", "arbiter", "threshold"]),
        *(["models", "draft", "kept_tokens"], ["tokenizer"], ["models", "target", "graph"]),
    ]

    def at(path: list[Any], value: Any) -> Change:
        return lambda root: edit(root, path, value)

    return {
        f"manifest: {'.'.join(path)} is {value!r}": at(path, value)
        for path in paths
        for value in values
    }
