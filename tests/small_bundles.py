"""A bundle of a few bytes, for tests of files and not of models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from msgspec.structs import replace

from cospec.runtime.bundle.manifest import GenerationDefaults, Manifest, ModelEntry, Models
from cospec.runtime.bundle.reader import (
    Bundle,
    read_manifest,
)
from cospec.runtime.bundle.writer import BundleWriter

CONTENTS = {
    "tokenizer.json": b'{"model": {}}',
    "chat_template.jinja": b"{{ messages }}",
    "target/model.onnx": b"target graph",
    "target/model.onnx.data": bytes(range(256)) * 20,
    "draft/model.onnx": b"draft graph",
}


def make_manifest() -> Manifest:
    target, draft = (
        ModelEntry(
            graph=f"{role}/model.onnx",
            source="tiny",
            architecture="LlamaForCausalLM",
            parameters=1_000,
            hidden_size=16,
            kv_shapes=((2, 8),),
            cache_dtype="float32",
        )
        for role in ("target", "draft")
    )
    return Manifest(
        name="tiny",
        created_by={"cospec": "0.1.0"},
        lowering="gqa",
        precision="fp32",
        capacity=64,
        vocab_size=100,
        summary_top=4,
        models=Models(target, draft),
        generation=GenerationDefaults(
            bos_token_id=0, eos_token_ids=(1,), num_draft_tokens=4, max_tokens=32, prefill_chunk=32
        ),
        tokenizer="tokenizer.json",
        chat_template="chat_template.jinja",
    )


class Swapper:
    """Two bundles that take the same name in turn, as `cospec-export --force` does."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.count = 0

    def swap(self) -> None:
        self.count += 1
        graph = f"graph {self.count}".encode()
        with BundleWriter(self.root, force=True) as writer:
            for relative, contents in CONTENTS.items():
                writer.path(relative).write_bytes(contents)
            writer.path("target/model.onnx").write_bytes(graph)
            writer.commit(make_manifest())

    def read(self, bundle: Bundle) -> tuple[str, bytes]:
        return bundle.manifest.seal, bundle.path("target/model.onnx").read_bytes()

    def seal_now(self) -> str:
        return read_manifest(self.root).seal


def write(
    destination: Path,
    graph: bytes = b"old",
    *,
    force: bool = False,
    meanwhile: Callable[[BundleWriter], object] = lambda writer: None,
) -> Path:
    with BundleWriter(destination, force=force) as writer:
        writer.path("target/model.onnx").write_bytes(graph)
        writer.path("tokenizer.json").write_bytes(b"{}")
        meanwhile(writer)
        both = make_manifest()
        target_alone = replace(both, models=Models(both.models.target), chat_template=None)
        return writer.commit(target_alone)


def graph_of(root: Path) -> bytes:
    return Bundle.open(root).path("target/model.onnx").read_bytes()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
