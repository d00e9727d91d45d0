"""The device script without a device: it skips honestly and, *simulated*, it works through."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from simulated_tensorrt import simulate

SCRIPT = Path(__file__).with_name("run.py")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module; it finds its own neighbours when it is run as a program."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    for name in ("run", "checks", "power"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module("run")


@pytest.fixture
def bundle(tiny_pair_for_tensorrt: Callable[[str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_pair_for_tensorrt("scatter"), tmp_path / "tiny"))


def test_without_a_gpu_it_says_skipped_and_ends_with_77(bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # a machine that has one
    report = tmp_path / "report.json"
    command = [sys.executable, SCRIPT, "--engine-dir", bundle, "--output", report]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 77
    assert ended.stdout.startswith("SKIPPED: ")
    found = json.loads(report.read_text())
    assert (found["status"], found["simulated"]) == ("skipped", False)
    assert f"SKIPPED: {found['reason']}" in ended.stdout
    assert "speed" not in found
    assert not (bundle / "engines").exists()


def test_a_simulated_device_without_a_gpu_is_skipped_too(script, bundle, tmp_path, monkeypatch):
    simulate(monkeypatch, devices=0)
    report = tmp_path / "report.json"
    arguments = ["--engine-dir", str(bundle), "--output", str(report)]
    assert script.main(arguments, simulated=True) == script.SKIPPED
    assert "cudaErrorInsufficientDriver" in json.loads(report.read_text())["reason"]


def run_simulated(script: ModuleType, bundle: Path, *more: str) -> tuple[int, dict]:
    report = bundle.parent / "report.json"
    prompts = bundle.parent / "prompts.txt"
    prompts.write_text("What is 12 + 30?\n\nWhat is 7 + 8?\n", encoding="utf-8")
    arguments = ["--engine-dir", str(bundle), "--output", str(report), "--max-tokens", "12"]
    code = script.main([*arguments, "--prompts", str(prompts), *more], simulated=True)
    return code, json.loads(report.read_text())


def test_the_whole_script_on_a_simulated_device(script, bundle, monkeypatch, capsys):
    simulate(monkeypatch)
    monkeypatch.setattr(script, "find_reader", lambda: ("simulated meter", lambda: 12.5))
    code, report = run_simulated(script, bundle)
    assert code == script.PASSED, report
    assert "PASSED (simulated)" in capsys.readouterr().out
    assert (report["simulated"], report["status"]) == (True, "passed")
    assert report["environment"]["gpu"] == "simulated GPU"
    assert report["build"]["built"] == ["target", "draft", "arbiter"]
    checks = report["checks"]
    assert set(checks) == {
        *("numerics of the target", "numerics of the draft", "strict"),
        *("chain of the target", "chain of the draft"),
    }
    for role in ("target", "draft"):
        numerics = checks[f"numerics of the {role}"]
        assert numerics["rows"] > 50
        assert max(numerics["relative_errors"].values()) < 1e-5, "ONNX Runtime against itself"
        assert checks[f"chain of the {role}"]["equal"] == 6
    assert checks["strict"]["equal"] == checks["strict"]["prompts"] == 2
    for mode in ("target only", "strict", "collab"):
        speed = report["speed"][mode]
        assert speed["watts"] == 12.5
        assert speed["joules_per_token"] == pytest.approx(12.5 / speed["tokens_per_second"])
    assert "recorded" in report["cuda_graphs"]["target"].values()
    _, again = run_simulated(script, bundle)
    assert again["build"]["built"] == [], "plans that match are not built twice"


def test_a_device_that_computes_otherwise_fails(script, bundle, monkeypatch):
    simulate(monkeypatch)
    goldens = bundle.parent / "goldens.npz"
    code = script.main(["--engine-dir", str(bundle), "--write-goldens", str(goldens)])
    assert code == script.PASSED
    assert run_simulated(script, bundle, "--goldens", str(goldens))[0] == script.PASSED
    with np.load(goldens) as arrays:
        shifted = {name: a * 1.5 if "target.hidden" in name else a for name, a in arrays.items()}
    np.savez(goldens, **shifted)
    code, report = run_simulated(script, bundle, "--goldens", str(goldens))
    assert code == script.FAILED
    assert report["status"] == "failed"
    failed = {name for name, check in report["checks"].items() if not check["passed"]}
    assert failed == {"numerics of the target"}


def test_a_bundle_for_onnx_runtime_alone_fails_with_the_reason(
    script, tiny_pair_bundle, tmp_path, monkeypatch
):
    simulate(monkeypatch)
    bundle = Path(shutil.copytree(tiny_pair_bundle, tmp_path / "tiny"))
    code, report = run_simulated(script, bundle)
    assert code == script.FAILED
    assert "--trt" in report["build"]["error"]


def test_power_of_a_jetson_is_read_from_its_rails(script, tmp_path):
    power = importlib.import_module("power")
    hwmon = tmp_path / "bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3"
    hwmon.mkdir(parents=True)
    rails = {1: ("VDD_GPU_SOC", 5000, 1000), 2: ("VDD_CPU_CV", 5000, 400)}
    for number, (label, millivolts, milliamperes) in rails.items():
        (hwmon / f"in{number}_label").write_text(f"{label}\n")
        (hwmon / f"in{number}_input").write_text(f"{millivolts}\n")
        (hwmon / f"curr{number}_input").write_text(f"{milliamperes}\n")
    name, read = power.find_reader(tmp_path)
    assert name == "INA3221: VDD_CPU_CV + VDD_GPU_SOC"
    assert read() == pytest.approx(7.0)
    (hwmon / "in1_label").write_text("VDD_IN\n")
    name, read = power.find_reader(tmp_path)
    assert (name, read()) == ("INA3221: VDD_IN", pytest.approx(5.0))
    with power.PowerMeter(read) as meter:
        pass
    assert meter.watts == pytest.approx(5.0)
    with power.PowerMeter(None) as meter:
        pass
    assert meter.watts is None
