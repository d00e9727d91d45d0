"""Bundles whose hashes are right and whose contents were made to harm.

`kinds()` are changes of a good bundle that an author of bundles could make and seal. Run it to try
all of them: each must be refused with an error of ours, or decode as if nothing were wrong, in bounded
time and memory.

    python -m tests.attacks.hostile_bundles BUNDLE
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
from msgspec import structs
from onnx import TensorProto, helper

from cospec.runtime.bundle.files import sha256_of
from cospec.runtime.bundle.manifest import MANIFEST_NAME, FileEntry, to_json
from cospec.runtime.bundle.reader import read_manifest

LIMITS = {"seconds": 60, "memory": 6 << 30}


def reseal(root: Path, **changes: Any) -> None:
    """Write the manifest anew, with fields changed and the hashes of the files as they are."""
    manifest = structs.replace(read_manifest(root), **changes)
    files = tuple(
        FileEntry(entry.path, (root / entry.path).stat().st_size, sha256_of(root / entry.path))
        for entry in manifest.files
    )
    (root / MANIFEST_NAME).write_bytes(to_json(structs.replace(manifest, files=files)))


def edit_model(root: Path, role: str, **changes: Any) -> None:
    """Change fields of a model's entry in the manifest, and seal it."""
    models = read_manifest(root).models
    entry = structs.replace(getattr(models, role), **changes)
    reseal(root, models=structs.replace(models, **{role: entry}))


def edit_graph(root: Path, role: str, edit: Callable[[onnx.ModelProto], object]) -> None:
    """Change a graph and seal the bundle."""
    path = root / role / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    edit(model)
    path.write_bytes(model.SerializeToString())
    reseal(root)


def edit_raw(root: Path, role: str, edit: Callable[[bytes], bytes]) -> None:
    """Change the bytes of a graph and seal the bundle."""
    path = root / role / "model.onnx"
    path.write_bytes(edit(path.read_bytes()))
    reseal(root)


def _dimension(of: str, name: str, axis: int, size: int) -> Callable[[onnx.ModelProto], object]:
    def edit(model: onnx.ModelProto) -> None:
        (value,) = (value for value in getattr(model.graph, of) if value.name == name)
        value.type.tensor_type.shape.dim[axis].dim_value = size

    return edit


def _dtype(of: str, name: str, dtype: int) -> Callable[[onnx.ModelProto], object]:
    def edit(model: onnx.ModelProto) -> None:
        (value,) = (value for value in getattr(model.graph, of) if value.name == name)
        value.type.tensor_type.elem_type = dtype

    return edit


def _drop(of: str, name: str) -> Callable[[onnx.ModelProto], object]:
    def edit(model: onnx.ModelProto) -> None:
        values = getattr(model.graph, of)
        kept = [value for value in values if value.name != name]
        del values[:]
        values.extend(kept)

    return edit


def _rename_output(old: str, new: str) -> Callable[[onnx.ModelProto], object]:
    def edit(model: onnx.ModelProto) -> None:
        for value in model.graph.output:
            value.name = new if value.name == old else value.name
        for node in model.graph.node:
            node.output[:] = [new if name == old else name for name in node.output]
            node.input[:] = [new if name == old else name for name in node.input]

    return edit


def _extra_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))


def replace_output(
    name: str, make: Callable[[str], list[onnx.NodeProto]]
) -> Callable[[onnx.ModelProto], object]:
    """Return an edit that computes an output by `make(the old value's name)` instead."""

    def edit(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            node.output[:] = [f"{name}.old" if each == name else each for each in node.output]
            node.input[:] = [f"{name}.old" if each == name else each for each in node.input]
        model.graph.node.extend(make(f"{name}.old"))

    return edit


def loop_for_ever(name: str, kind: int) -> Callable[[onnx.ModelProto], object]:
    """Return an edit that passes an output through a loop of 2^62 turns."""

    def make(old: str) -> list[onnx.NodeProto]:
        body = helper.make_graph(
            [
                helper.make_node("Identity", ["go"], ["go_on"]),
                helper.make_node("Identity", ["carried"], ["carried_on"]),
            ],
            "body",
            [
                helper.make_tensor_value_info("turn", TensorProto.INT64, []),
                helper.make_tensor_value_info("go", TensorProto.BOOL, []),
                helper.make_tensor_value_info("carried", kind, None),
            ],
            [
                helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
                helper.make_tensor_value_info("carried_on", kind, None),
            ],
        )
        turns = helper.make_tensor("turns", TensorProto.INT64, [], [1 << 62])
        always = helper.make_tensor("always", TensorProto.BOOL, [], [True])
        return [
            helper.make_node("Constant", [], ["turns"], value=turns),
            helper.make_node("Constant", [], ["always"], value=always),
            helper.make_node("Loop", ["turns", "always", old], [name], body=body),
        ]

    return replace_output(name, make)


def _external(**changes: str) -> Callable[[onnx.ModelProto], object]:
    """Return an edit of where the first external tensor lies."""

    def edit(model: onnx.ModelProto) -> None:
        tensor = next(t for t in model.graph.initializer if t.external_data)
        for entry in tensor.external_data:
            entry.value = changes.get(entry.key, entry.value)

    return edit


def _scrambled(data: bytes) -> bytes:
    """Write the first entry of external data with its value before its key."""
    key = b"\x0a\x08location"
    at = data.index(key)
    length = data[at + len(key) + 1]
    value = data[at + len(key) : at + len(key) + 2 + length]
    return data[:at] + value + key + data[at + len(key) + len(value) :]


def _padded(data: bytes) -> bytes:
    """Write the length of the first key of external data in two bytes instead of one."""
    at = data.index(b"\x0a\x08location")
    size = data[at - 1]
    # The tensor around it keeps its old length: the file is refused before anybody reads that.
    return data[: at - 1] + bytes([size + 1]) + b"\x0a\x88\x00location" + data[at + 10 :]


def kinds() -> dict[str, Callable[[Path], object]]:
    """Return the changes by name; each is called with the folder of a bundle of its own."""
    found: dict[str, Callable[[Path], object]] = {}

    def add(name: str, change: Callable[[Path], object]) -> None:
        found[name] = change

    def graph(name: str, edit: Callable[[onnx.ModelProto], object], role: str = "target") -> None:
        add(f"{role}: {name}", lambda root: edit_graph(root, role, edit))

    for role in ("target", "draft"):
        for of, name, axis in (
            ("input", "past.0.key", 1),
            ("input", "past.0.value", 2),
            ("input", "past.1.key", 3),
            ("output", "present.0.key", 2),
            ("output", "logits", 2),
            ("output", "hidden", 2),
            ("output", "top_ids", 2),
            ("output", "top_values", 2),
        ):
            for size in (1, 7, 1 << 24, 1 << 40):
                graph(f"{of} {name}, axis {axis} is {size}", _dimension(of, name, axis, size), role)
        for of, name in (
            ("input", "input_ids"),
            ("input", "cache_length"),
            ("input", "past.0.key"),
            ("output", "token"),
            ("output", "top_ids"),
            ("output", "entropy"),
            ("output", "logsumexp"),
            ("output", "present.1.value"),
        ):
            for dtype in (TensorProto.STRING, TensorProto.DOUBLE, TensorProto.INT32):
                graph(f"{of} {name} of kind {dtype}", _dtype(of, name, dtype), role)
            graph(f"without {of} {name}", _drop(of, name), role)
        for name in ("token", "logits", "present.0.key", "next_input_logprob"):
            graph(f"output {name} by another name", _rename_output(name, "other"), role)
        graph("an input too many", _extra_input, role)
        graph("a loop for ever in token", loop_for_ever("token", TensorProto.INT64), role)
        graph("a loop for ever in entropy", loop_for_ever("entropy", TensorProto.FLOAT), role)
        for location in (
            "../../secret",
            "/etc/passwd",
            "unlisted.bin",
            "./model.onnx.data",
            "../tokenizer.json",
            "",
            "*/_ORT_MEM_ADDR_/*",
            "model.onnx.data\0",
            "x" * 200,
        ):
            graph(f"external data at {location[:20]!a}", _external(location=location), role)
        for key, value in (
            ("offset", "-1"),
            ("offset", str(1 << 62)),
            ("length", str(1 << 62)),
            ("length", "0"),
            ("offset", "nonsense"),
        ):
            graph(f"external data with {key} {value}", _external(**{key: value}), role)
        for name, raw in (("scrambled", _scrambled), ("padded", _padded)):
            add(f"{role}: external data {name}", lambda root, r=role, e=raw: edit_raw(root, r, e))
        for name, raw in (
            ("empty", lambda data: b""),
            ("half", lambda data: data[: len(data) // 2]),
            ("zeros", lambda data: bytes(len(data))),
            ("text", lambda data: b"not a graph"),
            ("twice", lambda data: data + data),
        ):
            add(f"{role}: {name}", lambda root, r=role, e=raw: edit_raw(root, r, e))
        for field, value in (
            ("hidden_size", 7),
            ("hidden_size", 1 << 24),
            ("kv_shapes", ((1, 1),)),
            ("kv_shapes", ((1 << 24, 1 << 24),)),
            ("kv_shapes", ((2, 32),) * 4096),
            ("cache_dtype", "float16"),
        ):
            add(
                f"{role}: manifest says {field} {str(value)[:30]}",
                lambda root, r=role, f=field, v=value: edit_model(root, r, **{f: v}),
            )
    for field, value in (
        ("capacity", 511),
        ("capacity", 1 << 24),
        ("vocab_size", 511),
        ("vocab_size", 1 << 24),
        ("summary_top", 7),
        ("summary_top", 511),
    ):
        add(f"manifest says {field} {value}", lambda root, f=field, v=value: reseal(root, **{f: v}))
    found |= _arbiters()
    return found


def _arbiters() -> dict[str, Callable[[Path], object]]:
    def graph(edit: Callable[[onnx.ModelProto], object]) -> Callable[[Path], object]:
        return lambda root: edit_graph(root, "arbiter", edit)

    def scores(kind: str, *, cast: int | None = None) -> Callable[[onnx.ModelProto], object]:
        def make(old: str) -> list[onnx.NodeProto]:
            if cast is not None:
                return [helper.make_node("Cast", [old], ["score"], to=cast)]
            return [helper.make_node(kind, [old, old], ["score"], axis=0)]

        return replace_output("score", make)

    return {
        "arbiter: scores of two axes": graph(_rank("score", 2)),
        "arbiter: a single score": graph(_rank("score", 0)),
        "arbiter: scores of kind double": graph(_dtype("output", "score", TensorProto.DOUBLE)),
        "arbiter: scores of kind text": graph(_dtype("output", "score", TensorProto.STRING)),
        "arbiter: twice as many scores": graph(scores("Concat")),
        "arbiter: without scores": graph(_drop("output", "score")),
        "arbiter: a loop for ever": graph(loop_for_ever("score", TensorProto.FLOAT)),
        "arbiter: an input that nobody has": graph(_extra_input),
        "arbiter: without an input": graph(_drop("input", "block.run")),
        "arbiter: an input of another kind": graph(_dtype("input", "block.run", TensorProto.INT64)),
        "arbiter: empty": lambda root: edit_raw(root, "arbiter", lambda data: b""),
        "arbiter: half": lambda root: edit_raw(root, "arbiter", lambda data: data[:500]),
    }


def _rank(name: str, rank: int) -> Callable[[onnx.ModelProto], object]:
    def edit(model: onnx.ModelProto) -> None:
        (value,) = (value for value in model.graph.output if value.name == name)
        del value.type.tensor_type.shape.dim[:]
        for _ in range(rank):
            value.type.tensor_type.shape.dim.add().dim_value = 2

    return edit


TRIAL = """
import resource, sys, time
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]), int(sys.argv[2])))
import cospec
started = time.monotonic()
try:
    session = cospec.load(sys.argv[1])
    modes = ("strict", "collab") if session.arbiter else ("strict",)
    for mode in modes:
        done = session.generate("What is 12 + 30?", max_tokens=12, mode=mode, timeout=5)
        assert done.finish_reason == "timeout" or done.tokens, done
        print("ran", mode, done.finish_reason)
except cospec.CospecError as error:
    print("refused", type(error).__name__, error.message[:200].replace(chr(10), " "))
"""


def attempt(root: Path) -> tuple[str, str]:
    """Load a bundle and generate with it in a process of its own; return (verdict, what it said).

    The verdict is `refused`, `ran`, or what must never be: `untyped`, `killed`, `hung`.
    """
    command = [sys.executable, "-c", TRIAL, str(root), str(LIMITS["memory"])]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=LIMITS["seconds"]
        )
    except subprocess.TimeoutExpired:
        return "hung", ""
    said = done.stdout.strip().splitlines()
    if done.returncode < 0:
        return "killed", f"signal {-done.returncode}"
    if done.returncode or not said:
        return "untyped", done.stderr.strip().splitlines()[-1][:200] if done.stderr else ""
    return said[-1].split()[0], said[-1]


def trials(bundle: Path, only: Callable[[str], bool] = lambda name: True) -> Iterator[tuple]:
    """Yield (kind, verdict, what it said) of each kind of hostile bundle."""
    for name, change in kinds().items():
        if not only(name):
            continue
        with tempfile.TemporaryDirectory() as folder:
            root = shutil.copytree(bundle, Path(folder, "bundle"))
            change(root)
            yield name, *attempt(root)


def main() -> int:
    """Try every kind and print a table; return 1 if one was not refused and did not run."""
    counts: dict[str, int] = {}
    for name, verdict, said in trials(Path(sys.argv[1])):
        counts[verdict] = counts.get(verdict, 0) + 1
        print(f"{verdict:<8} {name:<60} {said}", flush=True)
    print(json.dumps(counts))
    return 0 if set(counts) <= {"refused", "ran"} else 1


if __name__ == "__main__":
    sys.exit(main())
