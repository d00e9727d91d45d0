"""Checks and measures a bundle on the TensorRT and the GPU of this machine, and writes one JSON.

    python tests/device/run.py --engine-dir models/tiny --output report.json

Builds the engines that are missing, compares them with ONNX Runtime on the CPU, checks that strict
decoding yields the target's own tokens, and measures tokens per second and joules per token.

Exit codes: 0 every check passed; 1 one failed; 77 SKIPPED, there is no GPU or no TensorRT; others as
those of cospec-run.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from checks import (
    check_chain,
    check_strict,
    compare,
    golden_steps,
    measure,
    play,
    read_goldens,
    write_goldens,
)
from power import find_reader

import cospec
from cospec.errors import CospecError
from cospec.runtime.bundle.manifest import ModelEntry
from cospec.runtime.bundle.reader import Bundle, find_bundle
from cospec.runtime.decoding.placement import graph_shape
from cospec.runtime.engines.onnxruntime import OrtEngine, OrtOptions
from cospec.runtime.tensorrt.api import Gpu, flavour_of, import_tensorrt, read_gpu, version_of
from cospec.runtime.tensorrt.bundle_engines import plan_keys, prepare_engines
from cospec.runtime.tensorrt.cuda import Cuda, import_cuda
from cospec.runtime.tensorrt.devices import device_of
from cospec.runtime.tensorrt.plan_store import PlanStore

PASSED, FAILED, SKIPPED = 0, 1, 77
REPORT_VERSION = 1
PROMPTS = (
    "What is 12 + 30?",
    "Mia has 58 keys and Sam 55 more than Mia. How many in all?",
    "What is 625 times 4?",
    "Name the three largest planets, and say why they are so large.",
    "Write a function that returns the n-th Fibonacci number.",
    "Explain in two sentences how a refrigerator works.",
)


def main(arguments: list[str] | None = None, *, simulated: bool = False) -> int:
    """Run the script; `simulated` labels a report that no GPU had a part in."""
    options = _parse(arguments)
    bundle = Bundle.open(find_bundle(options.engine_dir))
    if options.write_goldens:
        goldens = {role: _goldens(bundle, role, entry) for role, entry in _decoders(bundle)}
        write_goldens(options.write_goldens, goldens)
        print(f"goldens of {', '.join(goldens)} written to {options.write_goldens}")
        return PASSED
    report: dict[str, Any] = {"report_version": REPORT_VERSION, "simulated": simulated}
    found = _device(bundle)
    if isinstance(found, str):
        report |= {"status": "skipped", "reason": found}
        print(f"SKIPPED: {found}")
        code = SKIPPED
    else:
        report |= _examine(bundle, options, *found)
        code = PASSED if report["status"] == "passed" else FAILED
        print(f"{report['status'].upper()}{' (simulated)' if simulated else ''}")
    options.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"report: {options.output}")
    return code


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine-dir", type=Path, required=True, help="a bundle made with --trt")
    parser.add_argument("--output", type=Path, default=Path("device-report.json"))
    parser.add_argument("--max-tokens", type=int, default=128, help="of each prompt")
    parser.add_argument("--prompts", type=Path, help="a text file, one prompt a line")
    parser.add_argument("--write-goldens", type=Path, help="only write the goldens, on any machine")
    parser.add_argument(
        "--goldens", type=Path, help="goldens from --write-goldens, where ONNX Runtime is missing"
    )
    return parser.parse_args(arguments)


def _device(bundle: Bundle) -> tuple[Any, Any, Gpu] | str:
    """Return (trt, cuda, gpu), or the reason why there is nothing to run on."""
    try:
        cuda = import_cuda()
        Cuda(cuda)
        gpu = read_gpu(cuda)
        engines = bundle.manifest.engines
        trt = import_tensorrt(None if engines is None else engines.flavour)
    except CospecError as error:
        return error.message
    return (trt, cuda, gpu) if gpu is not None else "CUDA does not describe the GPU"


def _examine(
    bundle: Bundle, options: argparse.Namespace, trt: Any, cuda: Any, gpu: Gpu
) -> dict[str, Any]:
    """Build, check and measure; a step that raises is a failed one, and the others still run."""
    manifest = bundle.manifest
    power = find_reader()
    report: dict[str, Any] = {
        "environment": _environment(trt, cuda, gpu),
        "bundle": {"name": manifest.name, "seal": manifest.seal, "lowering": manifest.lowering}
        | {"precision": manifest.precision, "capacity": manifest.capacity},
        "power_source": power[0] if power else None,
        "build": _build(bundle, trt, gpu),
    }
    if not report["build"]["passed"]:
        return report | {"status": "failed"}
    session = cospec.load(bundle.root, backend="tensorrt", verify=False)
    decoders: dict[str, Any] = {"target": session.caches.target, "draft": session.caches.draft}
    limit, vocab_size = options.max_tokens, manifest.vocab_size
    prompts = [session.encode(prompt) for prompt in _prompts(options, session)]
    steps: dict[str, Callable[[], dict[str, Any]]] = {}
    for role, entry in _decoders(bundle):
        steps[f"numerics of the {role}"] = lambda role=role, entry=entry: compare(
            play(decoders[role], _widths(bundle), vocab_size),
            read_goldens(options.goldens, role)
            if options.goldens
            else _goldens(bundle, role, entry),
            entry.cache_dtype,
        )
        steps[f"chain of the {role}"] = lambda role=role: check_chain(
            decoders[role], vocab_size, max(1, manifest.generation.num_draft_tokens)
        )
    steps["strict"] = lambda: check_strict(session, prompts, limit)
    report["checks"] = {name: _try(step) for name, step in steps.items()}
    report["speed"] = _try(lambda: measure(session, prompts, limit, power[1] if power else None))
    report["cuda_graphs"] = {
        role: decoder.recording_report()
        for role, decoder in decoders.items()
        if decoder is not None
    }
    passed = all(check.get("passed") for check in report["checks"].values())
    passed = passed and "error" not in report["speed"]
    return report | {"status": "passed" if passed else "failed"}


def _build(bundle: Bundle, trt: Any, gpu: Gpu) -> dict[str, Any]:
    started = time.perf_counter()
    begun: dict[str, float] = {}

    def begin(role: str) -> Callable[[float], None]:
        begun[role] = time.perf_counter() - started
        print(f"building the engine of the {role} ...", flush=True)
        return lambda share: None

    def build() -> dict[str, Any]:
        device = device_of(gpu, flavour_of(trt), version_of(trt))
        built = prepare_engines(bundle.root, bundle.manifest, trt, gpu.sm, begin, device=device)
        store, found = PlanStore(bundle.root), {}
        for role, key in plan_keys(bundle.manifest, trt, gpu.sm).items():
            plan = store.find(role, key)
            found[role] = None if plan is None else plan.stat().st_size
        seconds = time.perf_counter() - started
        return {"passed": None not in found.values(), "built": built} | {
            "plan_bytes": found,
            "seconds": seconds,
            "begun_at_seconds": begun,
        }

    return _try(build)


def _try(step: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return step()
    except CospecError as error:
        return {"passed": False, "error": str(error)}


def _decoders(bundle: Bundle) -> list[tuple[str, ModelEntry]]:
    models = bundle.manifest.models
    return [("target", models.target), *([("draft", models.draft)] if models.draft else [])]


def _widths(bundle: Bundle) -> list[int]:
    chosen = bundle.manifest.generation
    return golden_steps(chosen.num_draft_tokens, chosen.prefill_chunk, bundle.manifest.capacity)


def _goldens(bundle: Bundle, role: str, entry: ModelEntry) -> dict[str, Any]:
    """Play the steps through ONNX Runtime on the CPU, on the very graph that the plan is made from."""
    low_memory = entry.cache_dtype == "float16"
    options = OrtOptions(provider="cpu", low_memory=low_memory)
    engine = OrtEngine(bundle.path(entry.graph), graph_shape(bundle.manifest, entry), options)
    return play(engine.decoder(), _widths(bundle), bundle.manifest.vocab_size)


def _prompts(options: argparse.Namespace, session: cospec.Session) -> list[Any]:
    texts = (
        [line for line in options.prompts.read_text(encoding="utf-8").splitlines() if line.strip()]
        if options.prompts
        else list(PROMPTS)
    )
    as_chat = session.codec.has_chat_template
    return [[{"role": "user", "content": text}] if as_chat else text for text in texts]


def _environment(trt: Any, cuda: Any, gpu: Gpu) -> dict[str, Any]:
    device = Cuda(cuda)
    release = Path("/etc/nv_tegra_release")
    return {
        "gpu": gpu.name,
        "sm": gpu.sm,
        "memory_bytes": gpu.memory_bytes,
        "unified_memory": gpu.unified,
        "module": trt.__name__,
        "tensorrt": version_of(trt),
        "cuda_runtime": device.call("cudaRuntimeGetVersion"),
        "cuda_driver": device.call("cudaDriverGetVersion"),
        "jetson": release.read_text().splitlines()[0] if release.exists() else None,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cospec": cospec.__version__,
    }


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CospecError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
