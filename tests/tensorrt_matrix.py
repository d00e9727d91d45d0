"""What NVIDIA's parser and builder say of every family: run as a script, it writes the results file.

    python tests/tensorrt_matrix.py [family ...]

One random two-layer model of each family, in both forms, is traced in fp16, parsed by TensorRT-RTX,
linted and built for three generations of GPUs. `docs/tensorrt.md` is made from the results file.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "data" / "tensorrt_results.json"
SMS = (86, 89, 120)
LOWERINGS = ("scatter", "portable")
CAPACITY, VOCAB, LAYERS = 96, 320, 2
NUM_DRAFT_TOKENS, PREFILL_CHUNK = 3, 16


def write_graph(checkpoint: Path, lowering: Any, folder: Path) -> Any:
    """Trace a checkpoint in fp16 and write it below `folder`; return its EngineSpec as a target."""
    import torch

    from cospec.export import graph
    from cospec.models.checkpoint import load_module, open_checkpoint
    from cospec.models.presets import resolve
    from cospec.runtime.manifest import ModelEntry
    from cospec.runtime.tensorrt.engines import decoder_spec

    opened = open_checkpoint(resolve(str(checkpoint)))
    module = load_module(opened, torch.float16)
    traced = graph.trace(module, lowering, CAPACITY, VOCAB)
    (folder / "target").mkdir(parents=True)
    graph.write(traced, folder / "target" / "model.onnx")
    entry = ModelEntry(
        graph="target/model.onnx",
        source="random",
        architecture=opened.architecture,
        parameters=opened.parameters,
        hidden_size=traced.hidden_size,
        kv_shapes=traced.kv_shapes,
        cache_dtype="float16",
    )
    return decoder_spec("target", entry, lowering, CAPACITY, NUM_DRAFT_TOKENS, PREFILL_CHUNK)


def check_and_build(trt: Any, folder: Path, spec: Any, sm: int) -> dict[str, Any]:
    """Parse, lint and build one graph; return what was found, a refusal in its own words included."""
    from cospec.export.dropped_inputs import lint_inputs
    from cospec.runtime.errors import GateError
    from cospec.runtime.tensorrt.builder import BuildRequest, build_plan, parse_graph
    from cospec.runtime.tensorrt.lint import (
        activation_bytes,
        allow_decomposition,
        fused_attention_kernels,
        lint_build,
        lint_network,
    )

    row: dict[str, Any] = {"parsed": False, "linted": False, "built": False}
    try:
        parsed = parse_graph(trt, folder / spec.graph)
        row["parsed"] = True
        lint_network(trt, parsed, spec.form)
        lint_inputs(trt, parsed)
        allow_decomposition(trt, parsed)
        row["linted"] = True
        made = build_plan(trt, parsed, BuildRequest(spec.profiles, sm))
        lint_build(trt, parsed, len(spec.profiles))
    except GateError as error:
        return {**row, "refused": error.message}
    return {
        **row,
        "built": True,
        "fused_attention_per_profile": len(fused_attention_kernels(made.log)) / len(spec.profiles),
        "activation_bytes": activation_bytes(made.log),
        "plan_bytes": len(made.plan),
    }


def measure(trt: Any, families: list[str]) -> list[dict[str, Any]]:
    """Return one row for each family, form and SM."""
    from factories import random_checkpoint

    rows = []
    for family in families:
        with tempfile.TemporaryDirectory() as scratch:
            root = Path(scratch)
            checkpoint = random_checkpoint(root / family, family, layers=LAYERS, vocab_size=VOCAB)
            for lowering in LOWERINGS:
                spec = write_graph(checkpoint, lowering, root / lowering)
                for sm in SMS:
                    started = time.monotonic()
                    found = check_and_build(trt, root / lowering, spec, sm)
                    print(family, lowering, sm, found, f"{time.monotonic() - started:.0f} s")
                    sys.stdout.flush()
                    rows.append({"model": family, "lowering": lowering, "sm": sm, **found})
    return rows


def main() -> None:
    from factories import FAMILIES

    from cospec.runtime.tensorrt.api import import_tensorrt, version_of

    trt = import_tensorrt("rtx")
    for family in sys.argv[1:] or FAMILIES:
        kept = json.loads(RESULTS.read_text())["rows"] if RESULTS.is_file() else []
        rows = [row for row in kept if row["model"] != family] + measure(trt, [family])
        order = {name: index for index, name in enumerate(FAMILIES)}
        rows.sort(key=lambda row: (order.get(row["model"], -1), row["lowering"], row["sm"]))
        results = {
            "builder": f"tensorrt-rtx {version_of(trt)}",
            "precision": "fp16",
            "layers": LAYERS,
            "vocab_size": VOCAB,
            "widest": PREFILL_CHUNK,
            "rows": rows,
        }
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
