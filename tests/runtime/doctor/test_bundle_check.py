"""What the doctor says of a bundle on a machine."""

from __future__ import annotations

from dataclasses import replace

from machines import BARE_CPU, GIB, ORIN_JP6, PLAIN, RTX_BOX, THOR_JP72, made_for, with_packages

from cospec.runtime.doctor.bundle_check import check_bundle, check_manifest, host_bytes
from cospec.runtime.tensorrt.api import Gpu


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
