"""The device kit without a device: it skips with the reason and, *simulated*, it runs whole."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import msgspec
import numpy as np
import pytest
from browser import opened
from kit_runs import PROMPTS, command, run
from simulated_tensorrt import simulate

from cospec.errors import UsageError
from cospec.runtime.doctor.kit import kit_run, kit_steps, power
from cospec.runtime.doctor.kit.kit_archive import kit_items, make_archive
from cospec.runtime.doctor.kit.kit_page import page_of
from cospec.runtime.doctor.kit.kit_report import Report, read_report
from cospec.runtime.doctor.kit.kit_run import run_kit
from cospec.runtime.doctor.kit.kit_steps import KitOptions

STEPS = (
    "build",
    "load",
    *("numerics of the target", "chain of the target"),
    *("numerics of the draft", "chain of the draft"),
    *("strict equals target", "speed"),
)


def test_without_a_gpu_it_says_skipped_and_ends_with_77(bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # a machine that has one
    report = tmp_path / "report.json"
    arguments = [sys.executable, "-m", "cospec.runtime.cli.kit", bundle, "--output", report]
    ended = subprocess.run(arguments, capture_output=True, text=True)
    assert ended.returncode == 77, ended.stderr
    assert ended.stdout.startswith("SKIPPED: ")
    found = read_report(report)
    assert (found.status, found.simulated, found.bundles) == ("skipped", False, {})
    assert f"SKIPPED: {found.reason}" in ended.stdout
    assert "SKIPPED" in report.with_suffix(".html").read_text()
    assert not (bundle / "engines").exists()


def test_a_simulated_device_without_a_gpu_is_skipped_too(bundle, monkeypatch):
    simulate(monkeypatch, devices=0)
    report = run(bundle)
    assert report.status == "skipped"
    assert "cudaErrorInsufficientDriver" in report.reason


def test_the_whole_kit_on_a_simulated_device(bundle, monkeypatch, tmp_path):
    simulate(monkeypatch)
    monkeypatch.setattr(kit_run, "find_reader", lambda: ("simulated meter", lambda: 12.5))
    report = run(bundle)
    assert report.status == "passed", report.failures
    assert read_report(tmp_path / "report.json") == report
    assert report.simulated
    assert report.environment.gpu == "simulated GPU"
    result = report.bundles["tiny"]
    assert tuple(result.steps) == STEPS
    assert result.steps["build"].facts["built"] == ["target", "draft", "arbiter"]
    for role in ("target", "draft"):
        numerics = result.steps[f"numerics of the {role}"].facts
        assert numerics["rows"] > 50
        assert max(numerics["relative_errors"].values()) < 1e-5, "ONNX Runtime against itself"
        assert result.steps[f"chain of the {role}"].facts["equal"] == 6
    strict = result.steps["strict equals target"].facts
    assert strict["equal"] == strict["prompts"] == 2
    assert set(result.speed) == {"target only", "strict", "collab"}
    for speed in result.speed.values():
        assert speed.watts == 12.5
        assert speed.joules_per_token == pytest.approx(12.5 / speed.tokens_per_second)
    assert "recorded" in result.cuda_graphs["target"].values()
    _assert_the_page_shows(report, tmp_path)


def _assert_the_page_shows(report: Report, folder: Path) -> None:
    page = folder / "report.html"
    page.write_text(page_of(report), encoding="utf-8")
    with opened(page.as_uri()) as tab:
        assert "SIMULATED" in tab.locator(".banner").inner_text()
        pictures = tab.locator("svg")
        titles = [pictures.nth(i).get_attribute("aria-label") for i in range(pictures.count())]
        assert titles == [
            "Tokens per second",
            "Joules per token",
            "Error as a share of what is allowed",
            "Seconds of each step",
        ]
        speeds = pictures.nth(0)
        assert speeds.locator("rect").count() == 3
        widest = max(report.bundles["tiny"].speed.values(), key=lambda each: each.tokens_per_second)
        assert f"{widest.tokens_per_second:.1f}" in speeds.text_content()
        boxes = [speeds.locator("rect").nth(i).bounding_box() for i in range(3)]
        assert all(box is not None and box["width"] > 0 for box in boxes)
        assert "PASSED" in tab.locator("body").inner_text()


def test_a_second_run_repeats_nothing_that_passed(bundle, monkeypatch):
    simulate(monkeypatch)
    first = run(bundle)

    def nothing(*arguments: object) -> None:
        raise AssertionError("it passed before")

    for name in ("check_chain", "check_strict", "measure", "compare"):
        monkeypatch.setattr(kit_steps, name, nothing)
    second = run(bundle)
    assert second.status == "passed"
    assert second.bundles["tiny"].speed == first.bundles["tiny"].speed
    assert second.bundles["tiny"].steps.keys() == first.bundles["tiny"].steps.keys()


def test_a_run_that_is_killed_goes_on_where_it_stopped(bundle, monkeypatch, tmp_path):
    simulate(monkeypatch)
    with monkeypatch.context() as patched:

        def killed(*arguments: object) -> None:
            raise KeyboardInterrupt

        patched.setattr(kit_steps, "check_strict", killed)
        with pytest.raises(KeyboardInterrupt):
            run(bundle)
    partial = read_report(tmp_path / "report.json")
    assert partial.status == "failed"
    assert "interrupted" in partial.reason
    assert tuple(partial.bundles["tiny"].steps) == STEPS[:6]
    report = run(bundle)
    assert report.status == "passed"
    assert report.reason is None
    assert report.bundles["tiny"].steps["build"] == partial.bundles["tiny"].steps["build"]


def test_another_machine_starts_again(bundle, monkeypatch, tmp_path):
    simulate(monkeypatch)
    run(bundle)
    raw = json.loads((tmp_path / "report.json").read_text())
    raw["environment"]["gpu"] = "another GPU"
    raw["bundles"]["tiny"]["steps"]["build"]["facts"] = {"built": ["elsewhere"]}
    (tmp_path / "report.json").write_text(json.dumps(raw))
    assert run(bundle).bundles["tiny"].steps["build"].facts["built"] == []


def test_no_step_begins_after_the_time_is_used_up(bundle, monkeypatch, tmp_path):
    simulate(monkeypatch)
    report = run(bundle, minutes=0.0)
    result = report.bundles["tiny"]
    assert (report.status, result.status, result.steps) == ("failed", "not run", {})
    assert "run the same command again" in result.reason
    assert run(bundle).status == "passed"


# The archive.


def test_the_archive_holds_all_that_a_device_needs(bundle, tmp_path, monkeypatch):
    (bundle / "engines" / "left").mkdir(parents=True)
    (bundle / "engines" / "left" / "target.plan").write_bytes(b"of this machine")
    wheel = tmp_path / "cospec-0.1.0-py3-none-any.whl"
    wheel.write_bytes(b"")
    made = command(bundle, "--make", tmp_path / "kit.zip", "--wheel", wheel)
    assert made.exit_code == 0, made.output
    with zipfile.ZipFile(tmp_path / "kit.zip") as archive:
        archive.extractall(tmp_path / "there")
    root = tmp_path / "there" / "device-kit"
    names = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    assert {"run.sh", "README.md", "kit.json", wheel.name, "goldens/tiny.npz"} <= names
    assert {"Dockerfile.jetpack6", "Dockerfile.jetpack7", "Dockerfile.rtx"} <= names
    assert not any("engines" in name for name in names)
    (item,) = kit_items([root])
    assert item.goldens is not None
    simulate(monkeypatch)
    options = KitOptions(max_tokens=8, prompts=PROMPTS[:1], simulated=True)
    monkeypatch.setattr(kit_steps, "goldens_of", None)  # those of the archive are used
    assert run_kit([item], tmp_path / "report.json", options).status == "passed"


def test_the_script_is_valid_shell_and_its_options_are_the_commands(tmp_path):
    script = Path(kit_run.__file__).with_name("recipes") / "run.sh"
    assert subprocess.run(["sh", "-n", script], check=False).returncode == 0
    text = script.read_text()
    assert "cospec-kit . --output device-report.json" in text
    assert script.stat().st_mode & 0o100


def test_two_bundles_of_one_name_are_refused(bundle, tmp_path):
    with pytest.raises(UsageError, match="the same name"):
        make_archive([bundle, bundle], tmp_path / "kit.zip", None)
    assert not (tmp_path / "kit.zip").exists()


# The report's schema.


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"report_version": 1}, "report_version"),
        ({"status": "excellent"}, "status"),
        ({"date": "yesterday"}, "a date, such as 2026-11-30"),
        ({"host": "someone's"}, "host: unknown key"),
        ({"seconds": -1.0}, "seconds"),
    ],
)
def test_a_report_that_is_not_one_is_refused(change, words, tmp_path):
    report = Report(
        report_version=2, simulated=False, status="skipped", date="2026-11-30", seconds=1.0
    )
    file = tmp_path / "report.json"
    raw = msgspec.to_builtins(report)
    file.write_text(json.dumps(raw))
    assert read_report(file) == report
    file.write_text(json.dumps(raw | change))
    with pytest.raises(UsageError, match=words):
        read_report(file)


def test_power_of_a_jetson_is_read_from_its_rails(tmp_path):
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


def test_numbers_of_goldens_are_compared_with_their_dtype():
    rows = {
        "token": np.array([1, 2]),
        "top_values": np.array([[2.0, 1.0], [3.0, 1.0]]),
        "logsumexp": np.array([2.0, 3.0]),
        "hidden": np.ones((2, 4)),
    }
    found = {**rows, "hidden": rows["hidden"] * 1.01}
    assert kit_steps.compare(found, rows, "float16")["passed"]
    assert not kit_steps.compare(found, rows, "float32")["passed"]
