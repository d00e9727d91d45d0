"""cospec-doctor on machines that are described, not present: every one but the last is simulated."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
from click.testing import CliRunner
from machines import BARE_CPU, GIB, PLAIN, RTX_BOX, with_packages
from msgspec import structs

from cospec.runtime.bundle.certificate import CERTIFICATE, write_certificate
from cospec.runtime.bundle.manifest import (
    Models,
)
from cospec.runtime.bundle.writer import BundleWriter
from cospec.runtime.cli import doctor as doctor_module
from cospec.runtime.cli.doctor import main as doctor_main
from cospec.runtime.doctor.bundle_check import check_bundle
from cospec.runtime.doctor.checks import check_machine
from cospec.runtime.doctor.machine import (
    probe,
)
from cospec.runtime.text.chat_format import ChatFormat


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
