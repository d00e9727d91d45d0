"""The tables of docs/tensorrt.md, made from the results of `tensorrt_matrix.py`.

`simulated` names the version that the simulation of the runtime's tests stands for. `run` stays empty
until somebody ran `tests/device/` on such a device and sent the JSON back.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

from simulated_tensorrt import VERSIONS
from tensorrt_matrix import LOWERINGS, RESULTS, SMS, models
from tensorrt_versions import NEWEST, OLDER, nearest
from tensorrt_weights import FORMS

from cospec.export.tensorrt_export import stand_in
from cospec.runtime.tensorrt.devices import DEVICES, Device

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "tensorrt.md"
BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->\n"
DEVICES_HEADER = """\
| devices | SM | TensorRT | form | precision | parsed and linted | built for | simulated | run |
|---|---|---|---|---|---|---|---|---|
"""
VERSION_COLUMNS = " | ".join(f"RTX {version}" for version in (NEWEST, *OLDER))
FORMS_COLUMN = " / ".join(LOWERINGS)
MODELS_HEADER = f"""
By model: the fused attention kernels of a profile and the size of an engine ({FORMS_COLUMN}), and
the SMs that TensorRT-RTX built both forms for. Older versions got SmolLM2 for SM {SMS[0]} only.

| model | layers | precision | fused | engine, MB | {VERSION_COLUMNS} |
|---|---|---|---|---|{"---|" * (1 + len(OLDER))}
"""

Row = dict[str, Any]


def of_devices(rows: list[Row]) -> str:
    """Return what holds for each device: those with the same GPU and TensorRT share a line."""

    def kind(device: Device) -> tuple[Any, ...]:
        return device.sm, device.flavour, device.trt_version, device.lowering

    lines = []
    for _, group in groupby(sorted(DEVICES.values(), key=kind), key=kind):
        devices = list(group)
        first = devices[0]
        assert first.sm is not None
        version = "RTX " * (first.flavour == "rtx") + first.trt_version
        quantised = [form for form in FORMS if form in first.precisions]
        for weights, builder in ((["fp16"], nearest(first)), (quantised, NEWEST)):
            own = [
                row
                for row in rows
                if (row["lowering"], row["rtx"]) == (first.lowering, builder)
                and row["weights"] in weights
            ]
            graphs = {(row["model"], row["weights"]): row["linted"] for row in own}
            # Quantised graphs are not simulated: no session runs them.
            simulated = f"as {VERSIONS[first.lowering]}" if weights == ["fp16"] else ""
            lines.append(
                f"| {', '.join(device.name for device in devices)} | {first.sm} | {version} "
                f"| {first.lowering} | {', '.join(weights)} "
                f"| {sum(graphs.values())} of {len(graphs)} graphs "
                f"| {_built_for(first, own, builder)} | {simulated} | |\n"
            )
    return DEVICES_HEADER + "".join(lines)


def _built_for(device: Device, rows: list[Row], builder: str) -> str:
    """Return how many graphs were built for a device's SM or for its stand-in, and by what."""
    assert device.sm is not None
    by = stand_in(device.sm)
    of_sm = [row for row in rows if row["sm"] == by]
    if not of_sm:
        return "not tried"
    proxy = "" if by == device.sm else ", which stands in"
    built = sum(row["built"] for row in of_sm)
    return f"{built} of {len(of_sm)} by RTX {builder} for SM {by}{proxy}"


def of_models(rows: list[Row]) -> str:
    """Return what holds for each model and precision of its weights."""
    lines = []
    for model in models():
        for weights in ("fp16", *FORMS):
            own = [row for row in rows if (row["model"], row["weights"]) == (model, weights)]
            if not own:
                continue
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
            lines.append(f"| {model} | {layers} | {weights} | {fused} | {size} | {versions} |\n")
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


def render(document: str, results: Row) -> str:
    """Return the document with its tables replaced."""
    before, _, rest = document.partition(BEGIN)
    _, _, after = rest.partition(END)
    rows = results["rows"]
    made = of_devices(rows) + of_models(rows) + refusals(rows)
    return before + BEGIN + made + END + after


def main() -> None:
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    text = render(DOCUMENT.read_text(encoding="utf-8"), results)
    DOCUMENT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
