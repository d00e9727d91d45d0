"""What NVIDIA's parser and builder say of every model: run as a script, it writes the results file.

    python tests/tensorrt_matrix.py [--missing] [model ...]

A random two-layer model of each family, the tiny pair and SmolLM2-135M-Instruct are exported in fp16,
int8, int4 and fp8, in each form, then parsed, linted and built for three generations of GPUs: by
TensorRT-RTX as installed and, in fp16, by two older versions. `docs/tensorrt.md` shows the record.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import tensorrt_versions
from tensorrt_versions import NEWEST, OLDER

RESULTS = Path(__file__).parent / "data" / "tensorrt_results.json"
SMS = (86, 89, 120)
LOWERINGS = ("scatter", "portable")
WEIGHTS = ("int8", "int4", "fp8")
PLAIN_FORMS = (("scatter", True), ("portable", False))
FORMS = (*PLAIN_FORMS, ("scatter", False))
"""Lowering, and whether more than products of int4 are in few bits: of TensorRT-RTX and 11; of 10.3 and
10.13; of 10.16, which is like the first in fp16."""
CAPACITY, VOCAB, LAYERS = 96, 320, 2
NUM_DRAFT_TOKENS, PREFILL_CHUNK = 3, 16

TINY_TARGET, TINY_DRAFT, SMOLLM2 = "tiny target", "tiny draft", "SmolLM2-135M-Instruct"
TRAINED = (TINY_TARGET, TINY_DRAFT, SMOLLM2)


@dataclass(frozen=True)
class Sizes:
    """Of a graph: tokens in its cache, and of a chunk of the prompt."""

    capacity: int = CAPACITY
    prefill_chunk: int = PREFILL_CHUNK


SMOLLM2_SIZES = Sizes(capacity=1024, prefill_chunk=64)


def models() -> tuple[str, ...]:
    """Return the names of all models, in the order of the record."""
    from factories import FAMILIES

    return (*FAMILIES, *TRAINED)


def checkpoint_of(model: str, scratch: Path) -> Path:
    """Return the checkpoint of a model, written below `scratch` if it is a random one."""
    from factories import random_checkpoint
    from smollm2 import smollm2_gguf_path

    from cospec.models import tiny_pair

    if model == SMOLLM2:
        return smollm2_gguf_path()
    if model in TRAINED:
        return Path(tiny_pair.__file__).parent / model.removeprefix("tiny ")
    return random_checkpoint(scratch / model, model, layers=LAYERS, vocab_size=VOCAB)


@dataclass(frozen=True)
class Exported:
    """A graph of the exporter's own.

    Attributes:
        spec: its EngineSpec.
        gate: what the parity gate found.
        kept: the manifest's lines about its weights.
    """

    spec: Any
    gate: dict[str, Any]
    kept: Any


def write_graph(
    checkpoint: Path,
    lowering: Any,
    folder: Path,
    role: str = "target",
    sizes: Sizes | None = None,
    weights: Any = "fp16",
    free: bool | None = None,
) -> Exported:
    """Export a checkpoint below `folder`, gate included.

    Args:
        checkpoint: a folder or a GGUF file.
        lowering: form of the attention block.
        folder: of the graphs.
        role: target or draft.
        sizes: of the graph.
        weights: fp16, or one of FORMS.
        free: see `Device.dequantises_freely`; None for what the versions that read the form have.
    """
    from cospec.export.decoder_export import DecoderRequest, export_decoder
    from cospec.export.weights.tensorrt_numbers import WeightRequest
    from cospec.models.checkpoint import open_checkpoint
    from cospec.models.presets import resolve
    from cospec.models.vocabulary import shared_vocabulary
    from cospec.runtime.tensorrt.bundle_engines import decoder_spec

    sizes = sizes or Sizes()
    opened = open_checkpoint(resolve(str(checkpoint)))
    free = lowering == "scatter" if free is None else free
    request = DecoderRequest(
        role=role,
        checkpoint=opened,
        lowering=lowering,
        precision="fp16",
        capacity=sizes.capacity,
        vocabulary=shared_vocabulary(opened, None),
        widest=NUM_DRAFT_TOKENS + 1,
        weights="keep",
        tensorrt=None if weights == "fp16" else WeightRequest(weights, free),
    )
    (folder / role).mkdir(parents=True)
    made = export_decoder(request, folder / role / "model.onnx", lambda stage: None)
    spec = decoder_spec(
        role, made.entry, lowering, sizes.capacity, NUM_DRAFT_TOKENS, sizes.prefill_chunk
    )
    return Exported(spec, made.parity, made.entry.kept_weights)


def check_and_build(trt: Any, folder: Path, spec: Any, sm: int) -> dict[str, Any]:
    """Parse, lint and build one graph; return what was found, a refusal in its own words included."""
    from cospec.errors import BackendError, GateError
    from cospec.export.dropped_inputs import lint_inputs
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
    except (GateError, BackendError) as error:
        return {**row, "refused": error.message}
    return {
        **row,
        "built": True,
        "fused_attention_per_profile": len(fused_attention_kernels(made.log)) / len(spec.profiles),
        "activation_bytes": activation_bytes(made.log),
        "plan_bytes": len(made.plan),
    }


def check_with(version: str, folder: Path, spec: Any, sm: int) -> dict[str, Any]:
    """`check_and_build` in a process that uses one version."""
    return check_and_build(tensorrt_versions.imported(version), folder, spec, sm)


@contextmanager
def builders() -> Iterator[dict[str, ProcessPoolExecutor]]:
    """Yield a process for each version: one process cannot load two of them."""
    with ExitStack() as stack:
        yield {
            version: stack.enter_context(
                ProcessPoolExecutor(
                    1, multiprocessing.get_context("spawn"), tensorrt_versions.use, (version,)
                )
            )
            for version in (NEWEST, *OLDER)
        }


def jobs(model: str, form: tuple[str, bool]) -> Iterator[dict[str, Any]]:
    """Yield what is to be built of a model in one of FORMS: the keys of its rows."""
    lowering, free = form
    if form not in PLAIN_FORMS and model not in TRAINED:
        return
    todo = [(NEWEST, weights) for weights in WEIGHTS]
    if form in PLAIN_FORMS:
        todo = [(version, "fp16") for version in (NEWEST, *OLDER)] + todo
    for (version, weights), sm in product(todo, SMS):
        # A large model takes the older versions minutes; other models in few bits show no more by SM.
        is_first = sm == (89 if weights == "fp8" else SMS[0])
        is_plain = weights == "fp16" and (model != SMOLLM2 or version == NEWEST)
        if is_first or is_plain or model in (TINY_TARGET, TINY_DRAFT):
            yield {
                "model": model,
                "rtx": version,
                "weights": weights,
                "lowering": lowering,
                "free": free,
                "sm": sm,
            }


def measure(
    todo: list[dict[str, Any]], pools: dict[str, ProcessPoolExecutor]
) -> Iterator[dict[str, Any]]:
    """Yield a row for each of the jobs, which are of one model in one form."""
    from cospec.models.checkpoint import open_checkpoint
    from cospec.models.presets import resolve

    model, lowering, free = (todo[0][name] for name in ("model", "lowering", "free"))
    sizes = SMOLLM2_SIZES if model == SMOLLM2 else Sizes()
    role = "draft" if model == TINY_DRAFT else "target"
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        checkpoint = checkpoint_of(model, root)
        vocab_size = open_checkpoint(resolve(str(checkpoint))).vocab_size
        exported: dict[str, Exported] = {}
        for job in todo:
            started = time.monotonic()
            weights = job["weights"]
            folder = root / weights
            if weights not in exported:
                exported[weights] = write_graph(
                    checkpoint, lowering, folder, role, sizes, weights, free
                )
            graph = exported[weights]
            pool = pools[job["rtx"]]
            found = pool.submit(check_with, job["rtx"], folder, graph.spec, job["sm"]).result()
            row = {
                **job,
                "layers": graph.spec.form.layers,
                "vocab_size": vocab_size,
                "widest": sizes.prefill_chunk,
                "gate": graph.gate["max_relative_error"],
                "kinds": [each.kind for each in graph.kept],
                **found,
            }
            print(f"{time.monotonic() - started:.0f} s", row, flush=True)
            yield row


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    """Return what tells a row from the others, and where it stands in the record."""
    return (
        models().index(row["model"]),
        (NEWEST, *OLDER).index(row["rtx"]),
        ("fp16", *WEIGHTS).index(row["weights"]),
        FORMS.index((row["lowering"], row["free"])),
        row["sm"],
    )


def write(rows: list[dict[str, Any]]) -> None:
    """Write the record, a row a line."""
    lines = ",\n".join(json.dumps(row) for row in sorted(rows, key=key))
    part = RESULTS.with_suffix(".part")
    part.write_text(f'{{"rows": [\n{lines}\n]}}\n', encoding="utf-8")
    part.replace(RESULTS)


def main() -> None:
    parser = argparse.ArgumentParser(description="build every model and record what was said")
    parser.add_argument("--missing", action="store_true", help="only what the record does not hold")
    parser.add_argument("models", nargs="*", default=models())
    options = parser.parse_args()
    started = time.monotonic()
    recorded = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"] if RESULTS.exists() else []
    rows = {key(row): row for row in recorded}
    with builders() as pools:
        for model, form in product(options.models, FORMS):
            todo = [job for job in jobs(model, form) if not options.missing or key(job) not in rows]
            for row in measure(todo, pools) if todo else ():
                rows[key(row)] = row
                write(list(rows.values()))  # an interrupted run keeps what it has
    print(f"{(time.monotonic() - started) / 60:.0f} minutes")


if __name__ == "__main__":
    main()
