"""The roofline: its arithmetic, its error, and the lines that it prints."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner

from cospec.bench.speed.bandwidth import PairBytes
from cospec.bench.speed.device_bandwidth import DEVICES, device_named
from cospec.bench.speed.projection import project_devices, read_measurement
from cospec.bench.speed.roofline import MOST_DRAFTED, project, projection_error, verify_curve
from cospec.calibration.quality.cli import main
from cospec.errors import UsageError

SIZES = PairBytes(target=1000.0, draft=100.0)


def test_the_target_alone_is_bandwidth_over_bytes():
    assert project(SIZES, 50_000, 0.5).target_only == pytest.approx(50)


def test_a_round_costs_its_draft_steps_and_one_pass():
    projected = project(SIZES, 1000.0, 0.5)
    assert projected.speculative[2] == pytest.approx((1 + 0.5 + 0.25) / (0.2 + 1.0))
    always = project(SIZES, 1000.0, 1.0)
    assert always.best_k == MOST_DRAFTED
    assert always.speedup == pytest.approx(9 / 1.8)
    never = project(SIZES, 1000.0, 0.0)
    assert (never.best_k, never.speedup) == (0, 1.0)


def test_a_verify_curve_makes_wide_passes_dearer():
    steep = project(SIZES, 1000.0, 1.0, [1, 2, 3, 4])
    assert steep.speculative[1] == pytest.approx(2 / 2.1)
    assert steep.speculative[8] == pytest.approx(9 / 4.8)  # beyond the curve its last value


def measured(curve: list[float], read: float, acceptance: float) -> list[dict[str, Any]]:
    projected = project(SIZES, read, acceptance, curve)
    rows = []
    for k, rate in enumerate(projected.speculative):
        tokens = sum(acceptance**i for i in range(k + 1))
        rows.append(
            {
                **{"name": "cospec", "format": "fp32", "setting": "", "k": k},
                **{"decode_tokens_per_second": rate, "tokens_per_pass": tokens},
                **{"acceptance": acceptance if k else None},
            }
        )
    return [*rows, {**rows[3], "k": "auto"}]


def test_the_verify_curve_is_found_again_in_what_was_measured():
    curve = [1.0, 1.1, 1.2, 1.3, 1.5, 1.6, 1.7, 1.8, 2.5]
    assert verify_curve(measured(curve, 1000.0, 0.7), SIZES, 1000.0) == pytest.approx(curve)


def test_the_error_is_projected_over_measured():
    exact = projection_error(measured([1.0], 1000.0, 0.7), SIZES, 1000.0)
    assert exact == pytest.approx({"target_only": 0, "speculative": 0, "speedup": 0})
    optimistic = projection_error(measured([1.0], 1000.0, 0.7), SIZES, 1200.0)
    assert optimistic["target_only"] == pytest.approx(0.2)
    assert optimistic["speedup"] == pytest.approx(0)


def test_every_device_has_a_bandwidth_and_a_source():
    for device in DEVICES.values():
        assert 50 < device.gigabytes_per_second < 2000
        assert device.source.startswith("https://")
    with pytest.raises(UsageError, match="unknown device 'abacus'"):
        device_named("abacus")


@pytest.fixture
def measurement_file(tmp_path):
    content = {
        "rows": [
            *measured([1.0, 1.2], 1000.0, 0.7),
            {"name": "cospec", "format": "int4", "setting": "", "k": 0, "skipped": "x"},
        ],
        "bounds": {
            "read_bytes_per_second": 1000.0,
            "pair_bytes": {"fp32": {"target": 1000.0, "draft": 100.0}},
        },
        "environment": {"cpu": "some CPU"},
    }
    path = tmp_path / "speed.json"
    path.write_text(json.dumps(content))
    return path


def test_devices_are_projected_with_the_error_of_this_machine(measurement_file):
    result = project_devices(PairBytes(1e9, 1e8), read_measurement(measurement_file))
    assert {each["kind"] for each in result["projections"]} == {"projection"}
    nano = next(each for each in result["projections"] if each["device"] == "orin-nano")
    assert nano["target_only_tokens_per_second"] == pytest.approx(68)
    assert nano["flat"]["speedup"] > nano["measured_curve"]["speedup"] > 1
    assert result["assumptions"]["acceptance"] == 0.7
    assert result["error_on_this_machine"]["target_only"] == pytest.approx(0)


def test_a_mixed_format_is_measured_against_its_targets_plain_row(measurement_file):
    content = json.loads(measurement_file.read_text())
    alone, *others = content["rows"]
    for row in others:
        row["format"] = "fp32+int4"
    content["rows"] = [alone, {**alone, "format": "int8"}, *others]
    content["bounds"]["pair_bytes"] = {"fp32+int4": {"target": 1000.0, "draft": 100.0}}
    measurement_file.write_text(json.dumps(content))
    measurement = read_measurement(measurement_file)
    assert measurement["format"] == "fp32+int4"
    assert [row["format"] for row in measurement["rows"][:2]] == ["fp32", "fp32+int4"]
    result = project_devices(PairBytes(1e9, 1e8), measurement)
    assert result["error_on_this_machine"]["target_only"] == pytest.approx(0)


def test_every_line_of_a_projection_says_so(measurement_file):
    arguments = ["project", "--measured", str(measurement_file), "--devices", "thor,rtx-4090"]
    done = CliRunner().invoke(main, [*arguments, "--target-gb", "500", "--draft-gb", "1"])
    assert done.exit_code == 0, done.output
    lines = [line for line in done.output.splitlines() if "thor" in line or "rtx-4090" in line]
    assert [line.split("|")[1].strip() for line in lines[:2]] == [
        "projection: thor",
        "projection: rtx-4090",
    ]
    assert all("| no " in line for line in lines[:2])  # 500 GB fit neither
    assert "some CPU" in done.output


def test_a_file_that_is_no_measurement_is_refused(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"rows": []}')
    with pytest.raises(UsageError, match="no result of cospec-bench speed"):
        read_measurement(path)
