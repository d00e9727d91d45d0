"""cospec-doctor on machines that are described, not present: every one but the last is simulated."""

from __future__ import annotations

import json
import shlex
import shutil
from dataclasses import replace
from typing import Any

import pytest
from click.testing import CliRunner
from msgspec import structs

from cospec.runtime.bundle.certificate import CERTIFICATE, write_certificate
from cospec.runtime.bundle.manifest import (
    EnginesEntry,
    FileEntry,
    GenerationDefaults,
    Manifest,
    ModelEntry,
    Models,
)
from cospec.runtime.bundle.writer import BundleWriter
from cospec.runtime.cli import doctor as doctor_module
from cospec.runtime.cli.doctor import main as doctor_main
from cospec.runtime.doctor.bundle_check import check_bundle, check_manifest, host_bytes
from cospec.runtime.doctor.checks import check_machine
from cospec.runtime.doctor.findings import Finding
from cospec.runtime.doctor.machine import (
    Machine,
    parse_dpkg,
    parse_extras,
    parse_l4t,
    probe,
)
from cospec.runtime.engines.host_memory import parse_meminfo
from cospec.runtime.tensorrt.api import Gpu
from cospec.runtime.text.chat_format import ChatFormat

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


@pytest.mark.parametrize("machine", [BARE_CPU, ORIN_JP6, THOR_JP72, RTX_BOX])
def test_a_simulated_machine_in_order_has_nothing_to_mend(machine):
    assert bad(machine) == []


def test_what_fits_which_simulated_machine():
    assert "reads the form 'portable'" in about(ORIN_JP6, "tensorrt")[0].message
    assert "reads the form 'scatter'" in about(THOR_JP72, "tensorrt")[0].message
    assert "reads the form 'scatter'" in about(RTX_BOX, "tensorrt_rtx")[0].message
    (jetpack,) = about(ORIN_JP6, "jetpack")
    assert jetpack.message.endswith("orin-nano-jp6.2 or orin-nx-jp6.2 or agx-orin-jp6.2")
    assert about(THOR_JP72, "jetpack")[0].message.endswith("--device thor-jp7.2")
    assert about(BARE_CPU, "jetpack") == []
    assert about(BARE_CPU, "[trt]")[0].message == "for machines with an NVIDIA GPU"
    assert about(ORIN_JP6, "[rtx]")[0].message == "for PCs"
    for jetson, sm in ((ORIN_JP6, 87), (THOR_JP72, 110)):
        (gpu,) = about(jetson, "[gpu]")
        assert gpu.message.startswith(
            f"PyPI's onnxruntime-gpu for aarch64 has no code for SM {sm};"
        )
    unseen = replace(ORIN_JP6, gpu=None, cuda_driver=None)
    assert "no code for this Jetson's GPU" in about(unseen, "[gpu]")[0].message
    spark = replace(THOR_JP72, gpu=Gpu("NVIDIA GB10", 121, 122 * GIB, unified=True), l4t=None)
    assert about(spark, "[gpu]")[0].message == "not installed: onnxruntime-gpu"
    (export,) = about(BARE_CPU, "[export]")
    assert (export.level, export.fix) == ("ok", 'pip install "cospec[export]"')
    assert export.message == "not installed: torch, transformers"
    assert about(BARE_CPU, "[dev]") == []


BROKEN: list[tuple[str, Machine, str, str, str]] = [
    (
        "PyPI's package of ONNX Runtime for GPUs on an Orin with JetPack 7",
        replace(
            with_packages(THOR_JP72, onnxruntime=None, onnxruntime_gpu="1.31.1"),
            gpu=Gpu("Orin", 87, 61 * GIB, unified=True),
            providers=CUDA_PROVIDERS,
        ),
        "warning",
        "1.31.1: PyPI's onnxruntime-gpu for aarch64 has no code for SM 87",
        "pip uninstall -y onnxruntime-gpu && pip install onnxruntime",
    ),
    (
        "the same on a Thor",
        replace(
            with_packages(THOR_JP72, onnxruntime=None, onnxruntime_gpu="1.31.1"),
            providers=CUDA_PROVIDERS,
        ),
        "warning",
        "bundles on TensorRT, and keep ONNX Runtime for the CPU",
        "pip uninstall -y onnxruntime-gpu && pip install onnxruntime",
    ),
    (
        "both packages of ONNX Runtime",
        with_packages(BARE_CPU, onnxruntime_gpu="1.31.0"),
        "problem",
        "installed together",
        "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu",
    ),
    (
        "no backend at all",
        with_packages(BARE_CPU, onnxruntime=None),
        "problem",
        "nothing else runs bundles",
        'pip install "cospec[cpu]"',
    ),
    (
        "an ONNX Runtime that does not load",
        replace(BARE_CPU, broken={"onnxruntime": "libgomp.so.1: cannot open"}, providers=()),
        "problem",
        "libgomp.so.1",
        "pip uninstall -y onnxruntime && pip install onnxruntime",
    ),
    (
        "an old ONNX Runtime",
        with_packages(BARE_CPU, onnxruntime="1.18.1"),
        "problem",
        "1.18.1 is older",
        "pip install -U onnxruntime",
    ),
    (
        "the GPU's package without its provider",
        replace(RTX_BOX, providers=CPU_PROVIDERS),
        "warning",
        "no CUDA provider",
        "pip install --force-reinstall onnxruntime-gpu",
    ),
    (
        "the GPU's package without a GPU",
        replace(
            with_packages(BARE_CPU, onnxruntime=None, onnxruntime_gpu="1.31.0"),
            providers=CUDA_PROVIDERS,
        ),
        "warning",
        "on a machine without one",
        "pip uninstall -y onnxruntime-gpu && pip install onnxruntime",
    ),
    (
        "a driver and no bindings",
        replace(with_packages(RTX_BOX, cuda_bindings=None), gpu=None, cuda_driver=None),
        "warning",
        "cuda-bindings, which asks it, is not",
        "pip install cuda-bindings",
    ),
    (
        "bindings newer than the driver, on a JetPack 6",
        with_packages(ORIN_JP6, cuda_bindings="13.0.1"),
        "problem",
        "needs a driver for CUDA 13, and this one is for 12.6",
        'pip install "cuda-bindings==12.*"',
    ),
    (
        "a TensorRT newer than the driver",
        replace(
            with_packages(
                RTX_BOX,
                tensorrt="11.4.0.1",
                tensorrt_cu13="11.4.0.1",
                cuda_bindings="12.9",
                tensorrt_rtx_cu13=None,
            ),
            cuda_driver=(12, 8),
        ),
        "problem",
        "for CUDA 13, and the driver is for CUDA 12.8",
        "pip uninstall -y tensorrt tensorrt-cu13 && pip install tensorrt-cu12",
    ),
    (
        "a TensorRT from an index on a JetPack 6",
        with_packages(ORIN_JP6, tensorrt_cu12="10.3.0"),
        "problem",
        "not for JetPack 6",
        "pip uninstall -y tensorrt tensorrt-cu12 && "
        "python3 -m venv --system-site-packages --clear .venv",
    ),
    (
        "a TensorRT that is too old",
        with_packages(ORIN_JP6, tensorrt="8.5.2"),
        "problem",
        "8.5.2 is older",
        "sudo apt install nvidia-jetpack",
    ),
    (
        "an environment that hides the JetPack's TensorRT",
        replace(with_packages(ORIN_JP6, tensorrt=None), isolated=True),
        "warning",
        "does not see the JetPack's packages",
        "python3 -m venv --system-site-packages --clear .venv",
    ),
    (
        "a Jetson without its JetPack",
        replace(THOR_JP72, jetpack=None),
        "warning",
        "the JetPack's package is not there",
        "sudo apt install nvidia-jetpack",
    ),
    (
        "an old Python",
        replace(BARE_CPU, python=(3, 8, 10)),
        "problem",
        "3.8.10 is older than 3.10",
        "python3.13 -m venv .venv",
    ),
    (
        "a base that is not whole",
        with_packages(BARE_CPU, click=None, numpy="1.24"),
        "problem",
        "without click, numpy",
        "pip install cospec",
    ),
    (
        "an old torch",
        with_packages(BARE_CPU, torch="2.1.0", transformers="5.2"),
        "warning",
        "older than cospec needs: torch",
        'pip install "cospec[export]" -U',
    ),
]


@pytest.mark.parametrize(
    ("machine", "level", "part", "fix"),
    [case[1:] for case in BROKEN],
    ids=[case[0].replace(" ", "-") for case in BROKEN],
)
def test_a_simulated_fault_is_named_once_with_its_command(machine, level, part, fix):
    matching = [each for each in bad(machine) if part in each.message]
    assert [(each.level, each.fix) for each in matching] == [(level, fix)]
    assert shlex.split(fix), "it can be pasted into a shell"


def test_little_memory_and_disk_are_warnings():
    small = replace(BARE_CPU, memory_free=GIB, disk_free=GIB)
    assert {each.topic: each.level for each in bad(small)} == {
        "memory": "warning",
        "disk": "warning",
    }
    unknown = replace(BARE_CPU, memory=None, memory_free=None, disk_free=None)
    assert bad(unknown) == []


def test_an_old_gpu_is_not_for_tensorrt():
    old = replace(RTX_BOX, gpu=Gpu("GTX 1080", 61, 8 * GIB, unified=False))
    assert [each.topic for each in bad(old)] == ["gpu"]
    assert "SM 61" in bad(old)[0].message


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


def test_a_bundle_on_the_cpu_needs_onnxruntime_and_memory():
    levels = [each.level for each in check_manifest(PLAIN, BARE_CPU)]
    assert levels == ["ok", "ok"]
    assert host_bytes(PLAIN) == GIB + 2 * 2 * 8 * 64 * 2
    (gone,) = check_manifest(PLAIN, with_packages(BARE_CPU, onnxruntime=None))
    assert (gone.level, gone.fix) == ("problem", 'pip install "cospec[cpu]"')
    *_, tight = check_manifest(PLAIN, replace(BARE_CPU, memory_free=GIB // 2))
    assert (tight.level, "close other programs" in tight.message) == ("warning", True)
    *_, small = check_manifest(PLAIN, replace(BARE_CPU, memory=GIB // 2, memory_free=GIB // 4))
    assert (small.level, small.fix.split()[0]) == ("problem", "cospec-export")


def test_a_bundle_for_tensorrt_must_have_a_form_that_it_reads():
    thor = made_for("thor-jp7.2", "scatter", 110)
    assert [each.level for each in check_manifest(thor, THOR_JP72)] == ["ok", "ok"]
    (wrong,) = check_manifest(thor, ORIN_JP6)
    assert wrong.level == "problem"
    assert "reads the form 'portable' only" in wrong.message
    portable = made_for("orin-nx-jp6.2", "portable", 87)
    other, fits = check_manifest(portable, THOR_JP72)
    assert (other.level, fits.level) == ("warning", "ok")
    assert "built for SM 110 instead" in other.message


def test_a_bundle_for_tensorrt_without_it_runs_on_the_cpu():
    found = list(check_manifest(made_for("rtx-4090", "scatter", 89, "rtx"), BARE_CPU))
    assert [each.level for each in found] == ["warning", "ok", "ok"]
    assert "without a GPU it runs on ONNX Runtime" in found[0].message
    lacking = with_packages(RTX_BOX, tensorrt_rtx=None)
    first, *_ = check_manifest(made_for("rtx-4090", "scatter", 89, "rtx"), lacking)
    assert (first.level, first.fix) == ("warning", 'pip install "cospec[rtx]"')


def test_engines_that_do_not_fit_the_gpu_are_a_problem():
    small = replace(RTX_BOX, gpu=Gpu("small", 89, GIB, unified=False))
    *_, memory = check_manifest(made_for("rtx-4090", "scatter", 89, "rtx"), small)
    assert memory.level == "problem"
    assert "of 1.0 GiB" in memory.message


def test_no_bundle_is_a_problem_with_the_errors_own_hint(tmp_path):
    (found,) = check_bundle(tmp_path, BARE_CPU)
    assert (found.level, found.topic) == ("problem", "bundle")
    assert "cospec-export" in found.fix


def test_files_of_a_jetson_are_read():
    text = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n"
    assert parse_l4t(text) == "36.4.3"
    assert parse_l4t("nothing of the kind") is None
    assert parse_l4t(None) is None
    listed = (
        "Package: nvidia-jetpack-dev\nStatus: install ok installed\nVersion: 9.9\n\n"
        "Package: nvidia-jetpack\nStatus: install ok installed\nVersion: 6.2.1+b38\n\n"
    )
    assert parse_dpkg(listed) == "6.2"
    assert parse_dpkg(listed.replace("ok installed", "ok not-there")) is None
    assert parse_meminfo("MemTotal:       16 kB\nHugePages_Total:  0\n") == {"MemTotal": 16384}


def test_requirements_are_read():
    lines = [*REQUIREMENTS, 'cospec[rtx]; sys_platform != "nowhere" and extra == "x"']
    extras = parse_extras([*lines, 'gone; sys_platform == "nowhere"'], (*EXTRAS, "x"))
    assert [str(each) for each in extras[""]] == ["numpy>=1.26", "click>=8.1"]
    assert [each.name for each in extras["dev"]] == ["cospec", "pytest"]
    assert [each.extras for each in extras["x"]] == [{"rtx"}]
    assert [each.name for each in extras["cpu"]] == ["onnxruntime"]


@pytest.mark.parametrize(
    ("version", "is_old"),
    [
        ("10.16.2.10", False),
        ("10.3", False),
        ("10.3.0+cu128", False),
        ("10.3rc1", False),
        ("10.3.0a0+872d972e41.nv24.08", False),
        ("9.99", True),
        ("8.5.2", True),
        ("r36-custom", False),
    ],
)
def test_versions_are_compared_as_package_indexes_do(version, is_old):
    machine = with_packages(ORIN_JP6, tensorrt=version)
    assert machine.lacking("trt") == ([], ["tensorrt"] if is_old else [])


def test_an_extra_of_extras_lacks_what_they_lack():
    machine = replace(BARE_CPU, packages=BASE)
    assert machine.lacking("dev") == (["starlette", "pytest"], [])
    assert machine.lacking("cpu") == (["onnxruntime"], [])
    other = with_packages(machine, onnxruntime_openvino="1.24.0")
    assert other.lacking("cpu") == ([], []), "any distribution of ONNX Runtime will do"
    (export,) = [each for each in check_machine(machine) if each.topic == "[export]"]
    assert export.fix == 'pip install "cospec[export,cpu]"'


def test_the_command_says_all_and_exits_with_1_on_a_problem(monkeypatch):
    monkeypatch.setattr(doctor_module, "probe", lambda folder: RTX_BOX)
    fine = CliRunner().invoke(doctor_main, [])
    assert (fine.exit_code, fine.stdout.splitlines()[-1]) == (0, "0 problems, 0 warnings")
    both = with_packages(RTX_BOX, onnxruntime="1.31.0")
    monkeypatch.setattr(doctor_module, "probe", lambda folder: both)
    wrong = CliRunner().invoke(doctor_main, [])
    assert wrong.exit_code == 1
    assert "problem  onnxruntime" in wrong.stdout
    assert "-> pip uninstall -y onnxruntime onnxruntime-gpu" in wrong.stdout
    report = json.loads(CliRunner().invoke(doctor_main, ["--json"]).stdout)
    assert report["ok"] is False
    assert report["machine"]["gpu"]["sm"] == 89
    assert {"onnxruntime", "onnxruntime-gpu"} <= set(report["machine"]["packages"])
    assert [f["fix"] for f in report["findings"] if f["level"] == "problem"] != [None]


def test_the_machine_at_hand_can_be_read_and_can_run_a_bundle(tmp_path):
    """Not simulated: whatever runs the tests has a whole environment, and perhaps no GPU."""
    machine = probe(tmp_path / "not" / "there")
    assert machine.packages["cospec"]
    assert "CPUExecutionProvider" in machine.providers
    assert machine.disk_free is not None
    assert abs(machine.disk_free - shutil.disk_usage(tmp_path).free) < GIB
    assert set(machine.extras) >= {"", "cpu", "trt", "export", "serve"}
    findings = {each.topic: each for each in check_machine(machine)}
    assert findings["python"].level == findings["cospec"].level == "ok"
    assert json.loads(json.dumps(machine.to_json()))["packages"]["cospec"]


def test_the_bundle_is_part_of_the_report(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor_module, "probe", lambda folder: BARE_CPU)
    with BundleWriter(tmp_path / "bundles" / "some") as writer:
        writer.path("target/model.onnx").write_bytes(b"graph")
        writer.path("tokenizer.json").write_bytes(b"{}")
        root = writer.commit(structs.replace(PLAIN, files=()))
    result = CliRunner().invoke(doctor_main, ["--engine-dir", str(root.parent), "--json"])
    found = [f for f in json.loads(result.stdout)["findings"] if f["topic"] == "bundle"]
    assert [each["level"] for each in found] == ["ok", "ok", "ok"]
    assert "gqa in fp16: runs on ONNX Runtime" in found[0]["message"]
    (root / "target/model.onnx").write_bytes(b"cut")
    assert CliRunner().invoke(doctor_main, ["--engine-dir", str(root)]).exit_code == 1


def test_the_times_of_passes_are_used_where_nothing_else_was_measured(tmp_path):
    target = structs.replace(PLAIN.models.target, pass_seconds=(0.04, 0.05))
    with BundleWriter(tmp_path / "some") as writer:
        writer.path("target/model.onnx").write_bytes(b"graph")
        writer.path("tokenizer.json").write_bytes(b"{}")
        root = writer.commit(structs.replace(PLAIN, files=(), models=Models(target)))
    *_, found = check_bundle(root, BARE_CPU)
    assert "the target alone wrote 25.0 tokens per second" in found.message


def test_a_chat_template_that_cannot_be_used_is_a_problem(tiny_bundle, tmp_path):
    bundle = tmp_path / "broken"
    shutil.copytree(tiny_bundle.root, bundle)
    assert not any("template" in found.message for found in check_bundle(bundle, BARE_CPU))
    chat = json.loads((bundle / "chat.json").read_text())
    chat["templates"]["default"] = "{% for m in messages %}".ljust(
        len(chat["templates"]["default"])
    )
    (bundle / "chat.json").write_text(ChatFormat(**chat).to_json(), encoding="utf-8")
    (found,) = [found for found in check_bundle(bundle, BARE_CPU) if "template" in found.message]
    assert found.level == "problem"
    assert "cannot be compiled" in found.message


def rates(**rates: Any) -> dict[str, Any]:
    """The section of a certificate on quality, with tokens per second alone."""
    modes = {mode: {"tokens_per_second": rate} for mode, rate in rates.items()}
    return {"quality": {"modes": modes}}


TIMED = {"tokens_per_second": 21.0, "target_only_tokens_per_second": 14.0}


@pytest.mark.parametrize(
    ("facts", "level", "says", "fix"),
    [
        (rates(target=20.0, strict=30.0, collab=33.5), "ok", "strict 30.0, collab 33.5", "speed"),
        (rates(target=20.0, strict=15.0), "warning", "(0.75 times)", "auto"),
        ({"weights": {"speed": [TIMED]}}, "ok", "target 14.0, strict 21.0", "speed"),
        ({}, "ok", "never measured", "speed"),
        ({"quality": None, "weights": []}, "ok", "never measured", "speed"),
        (rates(target="fast", strict=None), "ok", "never measured", "speed"),
    ],
)
def test_the_advice_about_a_bundle_uses_its_measured_speed(tmp_path, facts, level, says, fix):
    with BundleWriter(tmp_path / "some") as writer:
        writer.path("target/model.onnx").write_bytes(b"graph")
        writer.path("tokenizer.json").write_bytes(b"{}")
        write_certificate(writer.staging, facts)
        root = writer.commit(structs.replace(PLAIN, files=(), certificate=CERTIFICATE))
    *_, found = check_bundle(root, BARE_CPU)
    assert (found.level, found.topic) == (level, "bundle")
    assert says in found.message
    assert found.fix is not None
    assert fix in found.fix
