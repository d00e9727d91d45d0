"""What the doctor says of a machine: what fits it, what is wrong, and the command that mends it."""

from __future__ import annotations

import shlex
from dataclasses import replace

import pytest
from machines import (
    BARE_CPU,
    BASE,
    CPU_PROVIDERS,
    CUDA_PROVIDERS,
    EXTRAS,
    GIB,
    ORIN_JP6,
    REQUIREMENTS,
    RTX_BOX,
    THOR_JP72,
    about,
    bad,
    with_packages,
)

from cospec.runtime.doctor.checks import check_machine
from cospec.runtime.doctor.machine import (
    Machine,
    parse_dpkg,
    parse_extras,
    parse_l4t,
)
from cospec.runtime.engines.host_memory import parse_meminfo
from cospec.runtime.tensorrt.api import Gpu


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
