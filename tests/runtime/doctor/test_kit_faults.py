"""Faults that the kit meets: each ends in an error of its own, and the report says which."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from kit_runs import run
from simulated_tensorrt import SimulatedTensorRt, simulate

from cospec.errors import ResourceError
from cospec.runtime.doctor.kit import kit_steps
from cospec.runtime.doctor.kit.kit_page import page_of
from cospec.runtime.doctor.kit.kit_report import Report

# Faults: each ends in an error of its own, and the report says which.


def failure_of(report: Report, step: str) -> Any:
    assert report.status == "failed"
    found = {title: each.failure for _, title, each in report.failures}
    assert step in found, found
    assert found[step] is not None
    assert found[step].hint, "what to do"
    page = page_of(report)
    assert found[step].kind in page
    return found[step]


def test_a_build_that_runs_out_of_memory(bundle, monkeypatch):
    simulate(monkeypatch, build_errors=("Out of memory: requested 2147483648 bytes",))
    failure = failure_of(run(bundle), "build")
    assert failure.kind == ResourceError.__name__
    assert "ran out of memory" in failure.message


def _spoiled(bundle: Path, monkeypatch: pytest.MonkeyPatch, **facts: Any) -> Report:
    """Run with a target's plan that was built elsewhere, under the key and hash of a right one."""
    simulate(monkeypatch)
    run(bundle)
    (bundle.parent / "report.json").unlink()
    (plan,) = bundle.glob("engines/*/target.plan")
    prefix = b"simulated plan "
    raw = json.loads(plan.read_bytes().removeprefix(prefix)) | facts
    plan.write_bytes(prefix + json.dumps(raw).encode())
    record = plan.with_suffix(".json")
    known = json.loads(record.read_text())
    known["plan_sha256"] = hashlib.sha256(plan.read_bytes()).hexdigest()
    record.write_text(json.dumps(known))
    return run(bundle)


def test_a_plan_of_another_version(bundle, monkeypatch):
    failure = failure_of(_spoiled(bundle, monkeypatch, version="10.3.0"), "load")
    assert "cannot load the target's plan" in failure.message
    assert "built by 10.3.0" in failure.message


def test_a_plan_for_another_gpu(bundle, monkeypatch):
    failure = failure_of(_spoiled(bundle, monkeypatch, sm=89), "load")
    assert "cannot load the target's plan" in failure.message
    assert "SM 89" in failure.message


def test_a_kernel_that_yields_nan(bundle, monkeypatch):
    trt: SimulatedTensorRt = simulate(monkeypatch)
    trt.poison = True
    report = run(bundle)
    failure = failure_of(report, "numerics of the target")
    assert "not finite" in failure.message
    assert report.bundles["tiny"].speed == {}


def test_a_device_that_computes_otherwise_fails(bundle, monkeypatch, tmp_path):
    from cospec.runtime.bundle.reader import Bundle
    from cospec.runtime.doctor.kit.device_checks import write_goldens

    simulate(monkeypatch)
    goldens = kit_steps.compute_goldens(Bundle.open(bundle))
    goldens["target"]["hidden"] *= 1.5
    write_goldens(tmp_path / "goldens.npz", goldens)
    report = run(bundle)
    assert [title for _, title, _ in report.failures] == ["numerics of the target"]
    assert report.bundles["tiny"].status == "failed"
    assert "did not pass" in page_of(report)


def test_a_bundle_for_onnx_runtime_alone_fails_with_the_reason(
    tiny_pair_bundle, tmp_path, monkeypatch
):
    simulate(monkeypatch)
    bundle = Path(shutil.copytree(tiny_pair_bundle, tmp_path / "tiny"))
    assert "--trt" in failure_of(run(bundle), "build").hint


def test_a_bundle_that_this_tensorrt_cannot_read_is_not_run(bundle, monkeypatch):
    simulate(monkeypatch, "10.3.0")
    result = run(bundle).bundles["tiny"]
    assert (result.status, result.steps) == ("not run", {})
    assert "need TensorRT 10.15" in result.reason
