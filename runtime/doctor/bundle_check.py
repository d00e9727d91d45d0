"""Whether a bundle runs on a machine, and on what."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ...errors import CospecError
from ..bundle.certificate import measured_speed, read_certificate
from ..bundle.files import format_bytes
from ..bundle.manifest import EnginesEntry, Manifest, folder_bytes
from ..bundle.reader import Bundle, find_bundle
from ..tensorrt.api import EXTRAS, MODULES, Gpu
from ..tensorrt.device_memory import bundle_memory
from ..tensorrt.devices import device_of, lowering_for
from .findings import Finding, install, ok, problem, warning
from .machine import ORT_PACKAGES, Machine

ROLES = ("target", "draft", "arbiter")


def check_bundle(engine_dir: Path, machine: Machine) -> list[Finding]:
    """Return whether a bundle can run on this machine. File sizes are checked, hashes are not."""
    try:
        bundle = Bundle.open(find_bundle(engine_dir), verify=False)
    except CospecError as error:
        return [problem("bundle", error.message, error.hint)]
    return [*check_manifest(bundle.manifest, machine), *_check_chat(bundle), *_check_speed(bundle)]


def _check_speed(bundle: Bundle) -> Iterator[Finding]:
    """Say how fast the bundle was when it was measured, and what that advises; or how to measure it."""
    try:
        speed = measured_speed(read_certificate(bundle.root, bundle.manifest))
    except CospecError as error:
        yield problem("bundle", error.message, error.hint)
        return
    measure = "cospec-bench speed --engine-dir DIR"
    plain, strict = speed.get("target"), speed.get("strict")
    if plain is None:
        passes = bundle.manifest.models.target.pass_seconds
        alone = f"; the target alone wrote {1 / passes[0]:.1f} tokens per second" if passes else ""
        yield ok("bundle", f"its speed with drafts was never measured{alone}", measure)
        return
    shown = ", ".join(f"{mode} {rate:.1f}" for mode, rate in speed.items())
    shown = f"tokens per second on the machine that measured it: {shown}"
    if strict is not None and strict < plain:
        yield warning(
            "bundle",
            f"{shown}. Strict mode was slower than the target alone ({strict / plain:.2f} times): let "
            "the draft length adapt to this machine",
            "cospec-run --engine-dir DIR --num-draft-tokens auto",
        )
    else:
        yield ok("bundle", shown, measure)


def _check_chat(bundle: Bundle) -> Iterator[Finding]:
    """Say which chat templates cannot be used; plain text needs none."""
    file = bundle.manifest.chat_template
    if file is None:
        return
    from ..text.chat_format import ChatFormat

    try:
        chat = ChatFormat.read(bundle.path(file))
        for name in chat.templates:
            chat.compiled(name)
    except CospecError as error:
        yield problem("bundle", error.message, error.hint)


def check_manifest(manifest: Manifest, machine: Machine) -> Iterator[Finding]:
    """Whether the backend that a bundle was made for is installed, and whether its memory suffices."""
    name = f"{manifest.name}, {manifest.lowering} in {manifest.precision}"
    entry = manifest.engines
    if entry is None:
        yield from _on_onnxruntime(manifest, machine, f"{name}: runs on ONNX Runtime")
        return
    module = MODULES[entry.flavour]
    version = machine.packages.get(module.replace("_", "-"))
    if version is None or module in machine.broken or machine.gpu is None:
        lacks = "a GPU" if machine.gpu is None else module
        yield warning(
            "bundle",
            f"{name}: made for {entry.device}; without {lacks} it runs on ONNX Runtime",
            None if machine.gpu is None else install(EXTRAS[entry.flavour]),
        )
        yield from _on_onnxruntime(manifest, machine, f"{name}: can run on ONNX Runtime")
        return
    yield from _on_tensorrt(manifest, entry, machine.gpu, version, name)


def _on_onnxruntime(manifest: Manifest, machine: Machine, message: str) -> Iterator[Finding]:
    if "onnxruntime" in machine.broken or not any(map(machine.has, ORT_PACKAGES)):
        yield problem("bundle", f"{message}, which is not there", install("cpu"))
        return
    yield ok("bundle", message)
    need = host_bytes(manifest)
    shown = f"weights and caches take {format_bytes(need)}"
    if machine.memory is not None and need > machine.memory:
        yield problem(
            "bundle",
            f"{shown}, and this machine has {format_bytes(machine.memory)}: export a smaller "
            "model, in fp16 or with a shorter context",
            "cospec-export --target NAME --precision fp16 --capacity TOKENS",
        )
    elif machine.memory_free is not None and need > machine.memory_free:
        free = format_bytes(machine.memory_free)
        yield warning("bundle", f"{shown}, and {free} are free: close other programs")
    else:
        yield ok("bundle", shown)


def _on_tensorrt(
    manifest: Manifest, entry: EnginesEntry, gpu: Gpu, version: str, name: str
) -> Iterator[Finding]:
    reads = lowering_for(entry.flavour, version)
    if manifest.lowering == "scatter" and reads == "portable":
        yield problem(
            "bundle",
            f"{name}: {MODULES[entry.flavour]} {version} reads the form 'portable' only: export "
            f"for this device instead of {entry.device}",
            "cospec-export --target NAME --trt --device DEVICE",
        )
        return
    if entry.sm is not None and entry.sm != gpu.sm:
        yield warning(
            "bundle",
            f"{name}: made for {entry.device} (SM {entry.sm}); engines are built for SM {gpu.sm} "
            "instead",
        )
    else:
        yield ok("bundle", f"{name}: runs on {MODULES[entry.flavour]} {version}")
    plan = bundle_memory(manifest, device_of(gpu, entry.flavour, version), ROLES)
    shown = f"the engines take {format_bytes(plan.total)} of {format_bytes(gpu.memory_bytes)}"
    if plan.total > gpu.memory_bytes:
        yield problem(
            "bundle",
            f"{shown}: export a smaller model, or with a shorter context",
            f"cospec-export --target NAME --trt --device {entry.device} --capacity TOKENS",
        )
    else:
        yield ok("bundle", shown)


def host_bytes(manifest: Manifest) -> int:
    """Return the bytes that a session on ONNX Runtime needs at least: weights and caches."""
    models = manifest.models
    decoders = [model for model in (models.target, models.draft) if model is not None]
    graphs = [model.graph for model in decoders]
    if models.arbiter is not None:
        graphs.append(models.arbiter.graph)
    weights = sum(folder_bytes(manifest, graph) for graph in graphs)
    return weights + sum(model.cache_bytes(manifest.capacity) for model in decoders)
