"""A manifest with every optional part, and how an attacker would write it again."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from cospec.runtime.bundle.manifest import (
    FileEntry,
    GenerationDefaults,
    Manifest,
    ModelEntry,
    Models,
    to_json,
)


def make_model(role: str) -> ModelEntry:
    return ModelEntry(
        graph=f"{role}/model.onnx",
        source=f"some-org/{role}",
        architecture="LlamaForCausalLM",
        parameters=1_000,
        hidden_size=16,
        kv_shapes=((2, 8), (1, 4)),
        cache_dtype="float32",
    )


PATHS = ("target/model.onnx", "draft/model.onnx", "tokenizer.json", "chat_template.jinja")
MANIFEST = Manifest(
    name="tiny é",
    created_by={"cospec": "0.1.0", "torch": "2.9.1"},
    lowering="gqa",
    precision="fp32",
    capacity=128,
    vocab_size=300,
    summary_top=4,
    models=Models(make_model("target"), make_model("draft")),
    generation=GenerationDefaults(
        bos_token_id=None, eos_token_ids=(1, 2), num_draft_tokens=4, max_tokens=64, prefill_chunk=32
    ),
    tokenizer="tokenizer.json",
    chat_template="chat_template.jinja",
    files=tuple(FileEntry(path, 5, hashlib.sha256(b"bytes").hexdigest()) for path in PATHS),
)


def canonical(raw: dict[str, Any]) -> bytes:
    return (json.dumps(raw, indent=2, sort_keys=True, ensure_ascii=True) + "\n").encode()


def sealed(raw: dict[str, Any]) -> bytes:
    """`raw` as an attacker who knows the format would write it: with a seal that matches."""
    body = {key: value for key, value in raw.items() if key != "seal"}
    return canonical({**body, "seal": hashlib.sha256(canonical(body)).hexdigest()})


def changed(path: str, value: object) -> bytes:
    raw = json.loads(to_json(MANIFEST))
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    node = raw
    for part in parents:
        node = node[part]
    node[last] = value
    return sealed(raw)
