"""The tables of docs/tensorrt.md, made from the results of `tensorrt_matrix.py`.

    python tests/tensorrt_table.py [REPORT ...]

`simulated` names the version that the runtime's tests simulate. `run` shows the
reports in docs/devices/. A REPORT that somebody sent is checked, put there with its page, and shown.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from simulated_tensorrt import VERSIONS
from tensorrt_matrix import LOWERINGS, PLAIN_FORMS, RESULTS, SMS, WEIGHTS, models
from tensorrt_versions import NEWEST, OLDER, nearest

from cospec.errors import UsageError
from cospec.export.tensorrt_export import stand_in
from cospec.runtime.doctor.kit.kit_page import page_of
from cospec.runtime.doctor.kit.kit_report import BundleResult, Report, read_report, write_report
from cospec.runtime.tensorrt.api import MODULES, release
from cospec.runtime.tensorrt.devices import DEVICES, Device

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "tensorrt.md"
REPORTS = DOCUMENT.with_name("devices")
BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->\n"
DEVICES_HEADER = """\
| devices | SM | TensorRT | form | weights | parsed and linted | built for | simulated | run |
|---|---|---|---|---|---|---|---|---|
"""
VERSION_COLUMNS = " | ".join(f"RTX {version}" for version in (NEWEST, *OLDER))
FORMS_COLUMN = " / ".join(LOWERINGS)
MODELS_HEADER = f"""
By model and weights, for {FORMS_COLUMN}: the error of the parity gate as a share of the largest logit,
the fused attention kernels of a profile, the size of an engine, and the SMs that TensorRT-RTX built
both for. A dash: not recorded. Older versions got SmolLM2 for SM {SMS[0]} only.

| model | layers | weights | gate | fused | engine, MB | {VERSION_COLUMNS} |
|---|---|---|---|---|---|{"---|" * (1 + len(OLDER))}
"""

Row = dict[str, Any]


def reports_in(folder: Path) -> dict[str, Report]:
    """Return the reports of devices by the name of their file."""
    return {path.stem: read_report(path) for path in sorted(folder.glob("*.json"))}


def accept(file: Path, folder: Path) -> Path:
    """Check a report that somebody sent and put it into `folder`, with its page; return where.

    Raises:
        UsageError: it is not a report, or one of no device.
    """
    report = read_report(file)
    if report.simulated or report.environment is None:
        raise UsageError(f"{file}: it is {'simulated' if report.simulated else report.status}")
    machine = report.environment
    name = f"{machine.gpu}-{machine.module}-{machine.tensorrt}-{report.date}".lower()
    place = folder / f"{re.sub('[^a-z0-9.]+', '-', name)}.json"
    write_report(report, place)
    place.with_suffix(".html").write_text(page_of(report), encoding="utf-8")
    return place


def ran(device: Device, weights: Sequence[str], reports: dict[str, Report]) -> str:
    """Return what devices of a kind reported about bundles in the device's form and these weights."""
    found = []
    for name, report in reports.items():
        machine = report.environment
        if machine is None or (machine.sm, machine.module) != (device.sm, MODULES[device.flavour]):
            continue
        if release(machine.tensorrt) != release(device.trt_version):
            continue
        states = {
            bundle.status
            for bundle in report.bundles.values()
            if bundle.lowering == device.lowering and _kind(bundle) in weights
        } - {"not run"}
        if states:
            outcome = "failed" if "failed" in states else "passed"
            found.append(f"[{outcome} {report.date}](devices/{name}.html)")
    return ", ".join(found)


def _kind(bundle: BundleResult) -> str:
    """Return the column of a bundle's weights, by the narrowest that it holds."""
    kinds = " ".join(bundle.weights).lower()
    if "fp8" in kinds:
        return "fp8"
    if re.search("int4|q4_|w4|gptq|awq", kinds):
        return "int4"
    return "int8" if kinds else "fp16"


def of_devices(rows: list[Row], reports: dict[str, Report]) -> str:
    """Return what holds for each device: those with the same GPU and TensorRT share a line."""

    def kind(device: Device) -> tuple[Any, ...]:
        return device.sm, device.flavour, device.trt_version, device.lowering

    lines = []
    for _, group in groupby(sorted(DEVICES.values(), key=kind), key=kind):
        devices = list(group)
        first = devices[0]
        assert first.sm is not None
        version = "RTX " * (first.flavour == "rtx") + first.trt_version
        quantised = [each for each in WEIGHTS if each in first.precisions]
        for weights, builder in ((["fp16"], nearest(first)), (quantised, NEWEST)):
            # In fp16 there is nothing that a version may or may not dequantise.
            free = first.lowering == "scatter" if weights == ["fp16"] else first.dequantises_freely
            own = [
                row
                for row in rows
                if (row["lowering"], row["free"]) == (first.lowering, free)
                and row["rtx"] == builder
                and row["weights"] in weights
            ]
            graphs = {(row["model"], row["weights"]): row["linted"] for row in own}
            # Quantised graphs are not simulated: no session runs them.
            simulated = f"as {VERSIONS[first.lowering]}" if weights == ["fp16"] else ""
            lines.append(
                f"| {', '.join(device.name for device in devices)} | {first.sm} | {version} "
                f"| {first.lowering} | {', '.join(weights)} "
                f"| {sum(graphs.values())} of {len(graphs)} graphs "
                f"| {_built_for(first, own, builder)} | {simulated} "
                f"| {ran(first, weights, reports)} |\n"
            )
    return DEVICES_HEADER + "".join(lines)


def _built_for(device: Device, rows: list[Row], builder: str) -> str:
    """Return how many graphs were built for a device's SM or for its stand-in, and by what."""
    assert device.sm is not None
    by = stand_in(device.sm)
    of_sm = [row for row in rows if row["sm"] == by]
    if not of_sm:
        return "not tried"
    proxy = "" if by == device.sm else ", in its place"
    built = sum(row["built"] for row in of_sm)
    return f"{built} of {len(of_sm)} by RTX {builder} for SM {by}{proxy}"


def of_models(rows: list[Row]) -> str:
    """Return what holds for each model and form of its weights."""
    lines = []
    for model in models():
        for weights in ("fp16", *WEIGHTS):
            own = [
                row
                for row in rows
                if (row["model"], row["weights"]) == (model, weights)
                and (row["lowering"], row["free"]) in PLAIN_FORMS
            ]
            if not own:
                continue
            gates = {form: [r["gate"] for r in own if r["lowering"] == form] for form in LOWERINGS}
            gate = " / ".join(
                f"{max(each):.1e}" if each and None not in each else "-" for each in gates.values()
            )
            built = {form: [row for row in own if _is_built(row, form)] for form in LOWERINGS}
            fused = " / ".join(
                _numbers(row["fused_attention_per_profile"] for row in built[form])
                for form in LOWERINGS
            )
            size = " / ".join(
                f"{built[form][0]['plan_bytes'] / 1e6:.0f}" if built[form] else "-"
                for form in LOWERINGS
            )
            versions = " | ".join(
                _built([row for row in own if row["rtx"] == version])
                for version in (NEWEST, *OLDER)
            )
            layers = own[0]["layers"]
            lines.append(
                f"| {model} | {layers} | {weights} | {gate} | {fused} | {size} | {versions} |\n"
            )
    return MODELS_HEADER + "".join(lines)


def _is_built(row: Row, lowering: str) -> bool:
    return bool(row["built"] and row["lowering"] == lowering)


def _numbers(found: Iterable[float]) -> str:
    return ", ".join(f"{number:g}" for number in sorted(set(found))) or "-"


def _built(rows: list[Row]) -> str:
    """Return the SMs that were built for, by form if these differ."""
    by_form = {form: _sms(rows, form) for form in LOWERINGS}
    if not rows or len(set(by_form.values())) == 1:
        return by_form[LOWERINGS[0]]
    return "; ".join(f"{form}: {sms or 'none'}" for form, sms in by_form.items())


def _sms(rows: list[Row], lowering: str) -> str:
    if rows and all(row["lowering"] != lowering for row in rows):
        return "not tried"
    built = {row["sm"] for row in rows if _is_built(row, lowering)}
    return ", ".join(map(str, sorted(built)))


def refusals(rows: list[Row]) -> str:
    """Return what was refused, in the parser's or builder's own words, or that nothing was."""
    said: dict[str, dict[tuple[str, ...], list[str]]] = {}
    for row in rows:
        if "refused" in row:
            graph = (row["model"], row["weights"], row["lowering"], f"RTX {row['rtx']}")
            said.setdefault(row["refused"], {}).setdefault(graph, []).append(str(row["sm"]))
    if not said:
        return "\nNothing was refused.\n"
    lines = (
        "- "
        + "; ".join(f"{', '.join(graph)}, SM {' '.join(sms)}" for graph, sms in graphs.items())
        + f":\n  `{words}`\n"
        for words, graphs in said.items()
    )
    return "\nWhat was refused, and the words:\n\n" + "".join(lines)


def render(document: str, results: Row, reports: dict[str, Report]) -> str:
    """Return the document with its tables replaced."""
    before, _, rest = document.partition(BEGIN)
    _, _, after = rest.partition(END)
    rows = results["rows"]
    made = of_devices(rows, reports) + of_models(rows) + refusals(rows)
    return before + BEGIN + made + END + after


def main() -> None:
    parser = argparse.ArgumentParser(description="write the tables of docs/tensorrt.md")
    parser.add_argument("reports", nargs="*", type=Path, help="reports of devices, to be accepted")
    for file in parser.parse_args().reports:
        print(f"accepted as {accept(file, REPORTS)}")
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    text = render(DOCUMENT.read_text(encoding="utf-8"), results, reports_in(REPORTS))
    DOCUMENT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
