"""A projection for every device, with the error of the same arithmetic on the measured machine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...calibration.tables import markdown_table
from ...errors import UsageError
from .bandwidth import PairBytes
from .device_bandwidth import DEVICES, device_named
from .peer_formats import target_of
from .peers import OURS
from .roofline import acceptance_of, project, projection_error, verify_curve


def read_measurement(path: Path) -> dict[str, Any]:
    """Read what `cospec-bench speed --json` printed.

    Raises:
        UsageError: it is something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = [row for row in content["rows"] if row["name"] == OURS and "skipped" not in row]
        sizes = content["bounds"]["pair_bytes"]
        first = next(row for row in rows if row["k"] != 0)
        formats = (first["format"], target_of(first["format"]))
        alike = [
            row
            for row in rows
            if row["format"] == formats[row["k"] == 0] and row["setting"] == first["setting"]
        ]
        measurement = {
            "rows": alike,
            "sizes": PairBytes(**sizes[first["format"]]),
            "read": float(content["bounds"]["read_bytes_per_second"]),
            "format": first["format"],
            "cpu": content["environment"]["cpu"],
        }
        acceptance_of(alike)
    except (ValueError, KeyError, IndexError, TypeError, StopIteration) as error:
        raise UsageError(
            f"{path} is no result of cospec-bench speed --json on a pair with a draft of length 1",
            hint="measure again without --draft-lengths, or with 1 among them",
        ) from error
    return measurement


def project_devices(
    sizes: PairBytes,
    measurement: dict[str, Any],
    acceptance: float | None = None,
    names: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Return `projections` by device, the `assumptions`, and the `error_on_this_machine`.

    Each device is projected twice: with a flat verify curve, as if it computed faster than it reads at
    every width, and with the one that was measured here.

    Raises:
        UsageError: an unknown device.
    """
    rows, read = measurement["rows"], measurement["read"]
    acceptance = acceptance_of(rows) if acceptance is None else acceptance
    curve = verify_curve(rows, measurement["sizes"], read)
    devices = [device_named(name) for name in names] if names else list(DEVICES.values())
    projections = []
    for device in devices:
        memory = 1e9 * device.gigabytes_per_second
        flat = project(sizes, memory, acceptance)
        curved = project(sizes, memory, acceptance, curve)
        fits = sizes.target + sizes.draft <= 1e9 * device.gigabytes
        projections.append(
            {
                "kind": "projection",
                "device": device.name,
                "gigabytes_per_second": device.gigabytes_per_second,
                "source": device.source,
                "weights_fit": fits,
                "target_only_tokens_per_second": flat.target_only,
                "flat": {"k": flat.best_k, "speedup": flat.speedup},
                "measured_curve": {"k": curved.best_k, "speedup": curved.speedup},
            }
        )
    return {
        "projections": projections,
        "assumptions": {
            "target_bytes": sizes.target,
            "draft_bytes": sizes.draft,
            "acceptance": acceptance,
            "verify_curve": curve,
        },
        "error_on_this_machine": {
            "cpu": measurement["cpu"],
            "format": measurement["format"],
            **projection_error(rows, measurement["sizes"], read),
        },
    }


def as_text(result: dict[str, Any]) -> str:
    """Return what `project_devices` returned for people; every line says what it is."""
    columns = (
        *("projection for", "GB/s", "weights fit", "target alone, tok/s"),
        *("speed-up, flat verify", "speed-up, verify curve of this CPU"),
    )
    lines = [
        [
            f"projection: {each['device']}",
            f"{each['gigabytes_per_second']:g}",
            "yes" if each["weights_fit"] else "no",
            f"at most {each['target_only_tokens_per_second']:.1f}",
            *(
                f"{each[form]['speedup']:.2f} (k={each[form]['k']})"
                for form in ("flat", "measured_curve")
            ),
        ]
        for each in result["projections"]
    ]
    assumed, error = result["assumptions"], result["error_on_this_machine"]
    curve = ", ".join(f"{value:.2f}" for value in assumed["verify_curve"])
    sources = sorted({each["source"] for each in result["projections"]})
    return "\n".join(
        [
            markdown_table(columns, lines),
            "",
            f"Assumed: {assumed['target_bytes'] / 1e9:.2f} GB read a target pass and "
            f"{assumed['draft_bytes'] / 1e9:.3f} GB a draft step, acceptance "
            f"{assumed['acceptance']:.0%}; the verify curve of this CPU, by width from 1: {curve}.",
            f"Error of the same arithmetic on {error['cpu']}, {error['format']}, projected over "
            f"measured: target alone {error['target_only']:+.0%}, speculative "
            f"{error['speculative']:+.0%}, speed-up {error['speedup']:+.0%}.",
            "Bandwidths, the makers' peaks:",
            *(f"  {source}" for source in sources),
        ]
    )
