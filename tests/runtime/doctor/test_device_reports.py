"""Reports of devices become the column `run` of docs/tensorrt.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tensorrt_matrix import RESULTS
from tensorrt_table import DOCUMENT, REPORTS, accept, render, reports_in

from cospec.errors import UsageError
from cospec.runtime.doctor.kit.kit_report import BundleResult, Environment, Report, write_report


def report(**changes: Any) -> Report:
    machine = Environment(
        gpu="NVIDIA Orin Nano",
        sm=87,
        memory_bytes=8 << 30,
        unified_memory=True,
        module="tensorrt",
        tensorrt="10.3.0.30",
        cuda_runtime=12060,
        cuda_driver=12060,
        jetson="# R36 (release), REVISION: 4.3",
        platform="Linux-5.15-tegra-aarch64",
        python="3.10.12",
        cospec="0.1.0",
    )
    plain = BundleResult(
        name="tiny",
        seal="0" * 64,
        lowering="portable",
        precision="fp16",
        weights=(),
        capacity=512,
        status="passed",
    )
    bundles = {"tiny": plain} | {
        "int4": msgspec.structs.replace(plain, weights=("int4 in blocks of 64",), status="failed")
    }
    made = Report(
        report_version=2,
        simulated=False,
        status="failed",
        date="2026-12-01",
        seconds=600.0,
        environment=machine,
        bundles=bundles,
    )
    return msgspec.structs.replace(made, **changes)


def test_a_report_fills_the_rows_of_its_device_and_no_others(tmp_path):
    write_report(report(), tmp_path / "sent.json")
    place = accept(tmp_path / "sent.json", tmp_path)
    assert place.name == "nvidia-orin-nano-tensorrt-10.3.0.30-2026-12-01.json"
    assert "NVIDIA Orin Nano" in place.with_suffix(".html").read_text()
    (tmp_path / "sent.json").unlink()
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    text = render(DOCUMENT.read_text(encoding="utf-8"), results, reports_in(tmp_path))
    rows = [line for line in text.splitlines() if "2026-12-01" in line]
    assert len(rows) == 2
    assert all("orin-nano-jp6.2" in row and "| portable |" in row for row in rows)
    page = f"devices/{place.stem}.html"
    (plain,) = (row for row in rows if "| fp16 |" in row)
    (few,) = (row for row in rows if "int4" in row)
    assert plain.endswith(f"| [passed 2026-12-01]({page}) |")
    assert few.endswith(f"| [failed 2026-12-01]({page}) |")


@pytest.mark.parametrize(
    "change", [{"simulated": True}, {"environment": None, "status": "skipped"}]
)
def test_a_report_of_no_device_is_refused(change, tmp_path):
    write_report(report(**change), tmp_path / "sent.json")
    with pytest.raises(UsageError, match=r"simulated|skipped"):
        accept(tmp_path / "sent.json", tmp_path / "docs")


def test_a_file_that_is_no_report_is_refused(tmp_path):
    file = Path(tmp_path / "sent.json")
    file.write_text('{"tokens_per_second": 9000}')
    with pytest.raises(UsageError, match="unknown key"):
        accept(file, tmp_path)


def test_the_reports_that_are_here_are_valid():
    assert all(not each.simulated for each in reports_in(REPORTS).values())
    assert (REPORTS / "index.md").is_file()
