"""Machines and bundles that the doctor's tests describe: none of them is the one at hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from msgspec import structs

from cospec.runtime.bundle.manifest import (
    EnginesEntry,
    FileEntry,
    GenerationDefaults,
    Manifest,
    ModelEntry,
    Models,
)
from cospec.runtime.doctor.checks import check_machine
from cospec.runtime.doctor.findings import Finding
from cospec.runtime.doctor.machine import (
    Machine,
    parse_extras,
)
from cospec.runtime.tensorrt.api import Gpu

GIB = 1 << 30
REQUIREMENTS = [
    "numpy>=1.26",
    "click>=8.1",
    'onnxruntime>=1.23; extra == "cpu"',
    'onnxruntime-gpu>=1.23; extra == "gpu"',
    'tensorrt>=10.3; extra == "trt"',
    'cuda-bindings>=12.6; extra == "trt"',
    'tensorrt-rtx>=1.4; extra == "rtx"',
    'torch>=2.9; extra == "export"',
    'transformers>=5.0; extra == "export"',
    'starlette>=0.45; extra == "serve"',
    'cospec[serve]; extra == "dev"',
    'pytest>=8.3; extra == "dev"',
]
EXTRAS = ("cpu", "gpu", "trt", "rtx", "export", "serve", "dev")
BASE = {"cospec": "0.1.0", "numpy": "2.2.6", "click": "8.5.1"}
CPU_PROVIDERS = ("CPUExecutionProvider",)
CUDA_PROVIDERS = ("CUDAExecutionProvider", *CPU_PROVIDERS)

BARE_CPU = Machine(
    system="Linux",
    arch="x86_64",
    python=(3, 11, 7),
    packages=BASE | {"onnxruntime": "1.31.0"},
    extras=parse_extras(REQUIREMENTS, EXTRAS),
    providers=CPU_PROVIDERS,
    memory=16 * GIB,
    memory_free=12 * GIB,
    disk_free=100 * GIB,
    isolated=True,
)
ORIN_JP6 = replace(
    BARE_CPU,
    arch="aarch64",
    python=(3, 10, 12),
    packages=BASE | {"onnxruntime": "1.23.2", "tensorrt": "10.3.0", "cuda-bindings": "12.9.4"},
    gpu=Gpu("Orin", 87, 61 * GIB, unified=True),
    cuda_driver=(12, 6),
    has_driver=True,
    l4t="36.4.3",
    jetpack="6.2",
    isolated=False,
)
THOR_JP72 = replace(
    ORIN_JP6,
    python=(3, 12, 3),
    packages=BASE | {"onnxruntime": "1.31.0", "tensorrt": "10.16.2.10", "cuda-bindings": "13.2.0"},
    gpu=Gpu("NVIDIA Thor", 110, 122 * GIB, unified=True),
    cuda_driver=(13, 2),
    l4t="39.0",
    jetpack="7.2",
)
RTX_BOX = replace(
    BARE_CPU,
    packages=BASE
    | {
        "onnxruntime-gpu": "1.31.0",
        "tensorrt-rtx": "1.7.1.116",
        "tensorrt-rtx-cu13": "1.7.1.116",
        "cuda-bindings": "13.0.1",
    },
    providers=CUDA_PROVIDERS,
    gpu=Gpu("NVIDIA GeForce RTX 4090", 89, 24 * GIB, unified=False),
    cuda_driver=(13, 0),
    has_driver=True,
)


def with_packages(machine: Machine, **packages: str | None) -> Machine:
    """The machine with packages added, or without those that are None."""
    named = {name.replace("_", "-"): version for name, version in packages.items()}
    kept = {**machine.packages, **named}
    return replace(machine, packages={n: v for n, v in kept.items() if v is not None})


def bad(machine: Machine) -> list[Finding]:
    return [each for each in check_machine(machine) if each.level != "ok"]


def about(machine: Machine, topic: str) -> list[Finding]:
    return [each for each in check_machine(machine) if each.topic == topic]


MODEL = ModelEntry(
    graph="target/model.onnx",
    source="some-org/some-model",
    architecture="LlamaForCausalLM",
    parameters=1,
    hidden_size=16,
    kv_shapes=((2, 8),),
    cache_dtype="float16",
)
PLAIN = Manifest(
    name="some",
    created_by={"cospec": "0.1.0"},
    lowering="gqa",
    precision="fp16",
    capacity=64,
    vocab_size=100,
    summary_top=4,
    models=Models(MODEL),
    generation=GenerationDefaults(
        bos_token_id=None, eos_token_ids=(1,), num_draft_tokens=4, max_tokens=32, prefill_chunk=16
    ),
    tokenizer="tokenizer.json",
    files=(
        FileEntry("target/model.onnx", 1 * GIB, "0" * 64),
        FileEntry("tokenizer.json", 1, "0" * 64),
    ),
)


def made_for(device: str, lowering: Any, sm: int, flavour: Any = "tensorrt") -> Manifest:
    engines = EnginesEntry(device=device, flavour=flavour, trt_version="10.16", sm=sm)
    return structs.replace(PLAIN, lowering=lowering, engines=engines)
