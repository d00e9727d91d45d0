"""The table of docs/tensorrt.md, made from the results of `tensorrt_matrix.py`.

`simulated` names the version that the simulation of the runtime's tests stands for. `run` stays empty
until somebody ran `tests/device/` on such a device and sent the JSON back.
"""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any

from simulated_tensorrt import VERSIONS
from tensorrt_matrix import RESULTS

from cospec.export.tensorrt import stand_in
from cospec.runtime.tensorrt.devices import DEVICES, Device

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "tensorrt.md"
BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->\n"
HEADER = """\
| devices | SM | TensorRT | form | precision | parsed and linted | built for | simulated | run |
|---|---|---|---|---|---|---|---|---|
"""


def table(results: dict[str, Any]) -> str:
    """Return the table: devices with the same GPU and TensorRT share a row."""

    def kind(device: Device) -> tuple[Any, ...]:
        return device.sm, device.flavour, device.trt_version, device.lowering

    lines = []
    for _, group in groupby(sorted(DEVICES.values(), key=kind), key=kind):
        devices = list(group)
        first = devices[0]
        assert first.sm is not None
        by, rows = stand_in(first.sm), results["rows"]
        own = [row for row in rows if row["lowering"] == first.lowering]
        built = [row for row in own if row["sm"] == by and row["built"]]
        of_sm = [row for row in own if row["sm"] == by]
        models = {row["model"] for row in own}
        linted = {row["model"] for row in own if row["linted"]}
        version = "RTX " * (first.flavour == "rtx") + first.trt_version
        proxy = "" if by == first.sm else ", which stands in"
        lines.append(
            f"| {', '.join(device.name for device in devices)} | {first.sm} | {version} "
            f"| {first.lowering} | {results['precision']} | {len(linted)} of {len(models)} families "
            f"| {f'{len(built)} of {len(of_sm)} for SM {by}{proxy}' if of_sm else 'not tried'} "
            f"| as {VERSIONS[first.lowering]} | |\n"
        )
    return HEADER + "".join(lines)


def refusals(results: dict[str, Any]) -> str:
    """Return what was refused and why, or that nothing was."""
    said = {
        (row["model"], row["lowering"]): row["refused"]
        for row in results["rows"]
        if "refused" in row
    }
    if not said:
        return "\nNo family was refused.\n"
    return "\n" + "".join(f"- {model}, {form}: {words}\n" for (model, form), words in said.items())


def render(document: str, results: dict[str, Any]) -> str:
    """Return the document with its table replaced."""
    before, _, rest = document.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + table(results) + refusals(results) + END + after


def main() -> None:
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    text = render(DOCUMENT.read_text(encoding="utf-8"), results)
    DOCUMENT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
