"""Bundles whose hashes are right and whose contents were made to harm.

`kinds()` are changes of a good bundle that an author of bundles could make and seal. Run it to try
all of them: each must be refused with an error of ours, or decode as if nothing were wrong, in bounded
time and memory.

    cd tests && python -m attacks.hostile_bundles BUNDLE [--only KIND]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
from attacks.children import call
from attacks.hostile_graphs import (
    dimension,
    drop,
    dtype,
    external,
    extra_input,
    loop_for_ever,
    padded,
    rank,
    rename_output,
    replace_output,
    scrambled,
)
from attacks.hostile_texts import manifest_kinds, template_kinds, tokenizer_kinds
from msgspec import structs
from onnx import TensorProto, helper

import cospec
from cospec.runtime.bundle.files import sha256_of
from cospec.runtime.bundle.manifest import MANIFEST_NAME, FileEntry, to_json
from cospec.runtime.bundle.reader import read_manifest

LIMITS = {"seconds": 60, "memory": 6 << 30}
GOOD = ("refused", "ran")
TIMEOUT = 2.0
"""Seconds of a generation: a graph that loops for ever meets it."""


def reseal(root: Path, **changes: Any) -> None:
    """Write the manifest again, with fields changed and the hashes of the files as they are."""
    manifest = structs.replace(read_manifest(root), **changes)
    files = tuple(
        FileEntry(entry.path, (root / entry.path).stat().st_size, sha256_of(root / entry.path))
        for entry in manifest.files
    )
    (root / MANIFEST_NAME).write_bytes(to_json(structs.replace(manifest, files=files)))


def with_template(root: Path) -> None:
    """Seal a bundle whose chat template was written."""
    path = root / "chat_template.jinja"
    manifest = read_manifest(root)
    entry = FileEntry(path.name, path.stat().st_size, sha256_of(path))
    files = tuple(each for each in manifest.files if each.path != path.name)
    reseal(root, chat_template=path.name, files=(*files, entry))


def edit_manifest(root: Path, path: list[Any], value: Any) -> None:
    """Set a field of the manifest's JSON to any value, with a seal that matches."""
    raw = json.loads((root / MANIFEST_NAME).read_text())
    del raw["seal"]
    node = raw
    for part in path[:-1]:
        node = node[part]
    node[path[-1]] = value
    raw["seal"] = hashlib.sha256(_canonical(raw)).hexdigest()
    (root / MANIFEST_NAME).write_bytes(_canonical(raw))


def _canonical(raw: dict[str, Any]) -> bytes:
    return (json.dumps(raw, indent=2, sort_keys=True) + "\n").encode()


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
                graph(f"{of} {name}, axis {axis} is {size}", dimension(of, name, axis, size), role)
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
            for kind in (TensorProto.STRING, TensorProto.DOUBLE, TensorProto.INT32):
                graph(f"{of} {name} of kind {kind}", dtype(of, name, kind), role)
            graph(f"without {of} {name}", drop(of, name), role)
        for name in ("token", "logits", "present.0.key", "next_input_logprob"):
            graph(f"output {name} by another name", rename_output(name, "other"), role)
        graph("an input too many", extra_input, role)
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
            graph(f"external data at {location[:20]!a}", external(location=location), role)
        for key, value in (
            ("offset", "-1"),
            ("offset", str(1 << 62)),
            ("length", str(1 << 62)),
            ("length", "0"),
            ("offset", "nonsense"),
        ):
            graph(f"external data with {key} {value}", external(**{key: value}), role)
        for name, raw in (("scrambled", scrambled), ("padded", padded)):
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
    return (
        found
        | _arbiters()
        | template_kinds(with_template)
        | tokenizer_kinds(reseal)
        | (manifest_kinds(edit_manifest))
    )


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
        "arbiter: scores of two axes": graph(rank("score", 2)),
        "arbiter: a single score": graph(rank("score", 0)),
        "arbiter: scores of kind double": graph(dtype("output", "score", TensorProto.DOUBLE)),
        "arbiter: scores of kind text": graph(dtype("output", "score", TensorProto.STRING)),
        "arbiter: twice as many scores": graph(scores("Concat")),
        "arbiter: without scores": graph(drop("output", "score")),
        "arbiter: a loop for ever": graph(loop_for_ever("score", TensorProto.FLOAT)),
        "arbiter: an input that nobody has": graph(extra_input),
        "arbiter: without an input": graph(drop("input", "block.run")),
        "arbiter: an input of another kind": graph(dtype("input", "block.run", TensorProto.INT64)),
        "arbiter: empty": lambda root: edit_raw(root, "arbiter", lambda data: b""),
        "arbiter: half": lambda root: edit_raw(root, "arbiter", lambda data: data[:500]),
    }


def trial(root: Path) -> None:
    """Load a bundle and generate with it; print what happened."""
    try:
        session = cospec.load(root, options=cospec.OrtOptions(threads=1))
        for mode in ("strict", "collab") if session.arbiter else ("strict",):
            prompt: Any = "What is 12 + 30? " + "x" * 40
            if session.codec.has_chat_template:
                prompt = [{"role": "user", "content": prompt}]
            done = session.generate(prompt, max_tokens=12, mode=mode, timeout=TIMEOUT)
            if done.finish_reason != "timeout" and not done.tokens:
                raise ValueError("nothing was generated")
            print("ran", mode, done.finish_reason)
    except cospec.CospecError as error:
        print("refused", type(error).__name__, error.message[:200].replace("\n", " "))


def attempt(root: Path) -> tuple[str, str]:
    """Load a bundle and generate with it in a process of its own; return (verdict, what it said).

    The verdict is `refused`, `ran`, or what must never be: `untyped`, `killed`, `hung`.
    """
    code, said = call(lambda: trial(root), seconds=LIMITS["seconds"], memory=LIMITS["memory"])
    last = said.strip().splitlines()[-1:] or [""]
    if code is None:
        return "hung", ""
    if code < 0:
        return "killed", f"signal {-code}"
    if code or not last[0]:
        return "untyped", last[0][:200]
    return last[0].split()[0], last[0]


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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--only", action="append", help="a kind, or a part of its name")
    given = parser.parse_args()
    found: Counter[str] = Counter()
    for name, verdict, said in trials(
        given.bundle, lambda name: any(part in name for part in given.only or [""])
    ):
        found[verdict] += 1
        print(verdict, name, said, sep="\t", flush=True)
    failed = sum(count for verdict, count in found.items() if verdict not in GOOD)
    print(f"tried {found.total()}, failed {failed}: {dict(found)}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
