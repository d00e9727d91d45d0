"""The report of a device as one page with pictures: no script, and nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from .kit_report import BundleResult, Report, Step

_WIDTH, _BAR, _LABEL = 640, 22, 170
_COLOURS = {"passed": "#2e7d32", "failed": "#c62828", "skipped": "#b26a00", "not run": "#666"}
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 760px; margin: 2em auto; padding: 0 1em; }
h1, h2 { font-weight: 600; } table { border-collapse: collapse; }
td, th { padding: .15em .8em .15em 0; text-align: left; vertical-align: top; }
.banner { background: #fff3cd; border: 2px solid #b26a00; padding: .6em 1em; font-weight: 600; }
.hint { color: #555; } svg { display: block; margin: .5em 0 1em; } text { font-size: 13px; }
"""


def page_of(report: Report) -> str:
    """Return the page, HTML."""
    parts = [
        f"<h1>{'Simulated' if report.simulated else 'Device'} report, {escape(report.date)}</h1>",
        f"<p>Result: {_badge(report.status)} after {report.seconds / 60:.1f} minutes.</p>",
    ]
    if report.simulated:
        parts.insert(
            1,
            '<p class="banner">SIMULATED: no GPU had a part in this. Numbers and speeds are those of '
            "ONNX Runtime on a CPU.</p>",
        )
    if report.reason:
        parts.append(f"<p>{escape(report.reason)}</p>")
    parts += [_machine(report), _failures(report)]
    parts += [_bundle(name, bundle) for name, bundle in report.bundles.items()]
    title = f"CoSpec on {report.environment.gpu if report.environment else 'no device'}"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style><body>{''.join(parts)}</body></html>\n"
    )


def _machine(report: Report) -> str:
    machine = report.environment
    if machine is None:
        return ""
    rows = {
        "GPU": f"{machine.gpu}, SM {machine.sm}, {machine.memory_bytes / 2**30:.1f} GiB",
        "TensorRT": f"{machine.module} {machine.tensorrt}",
        "CUDA": f"runtime {machine.cuda_runtime}, driver {machine.cuda_driver}",
        "Jetson": machine.jetson or "no",
        "System": f"{machine.platform}, Python {machine.python}, cospec {machine.cospec}",
        "Power": report.power_source or "no sensor found",
    }
    lines = [f"<tr><th>{key}<td>{escape(value)}" for key, value in rows.items()]
    return f"<h2>Machine</h2><table>{''.join(lines)}</table>"


def _failures(report: Report) -> str:
    if not report.failures:
        return ""
    lines = []
    for bundle, title, step in report.failures:
        failure = step.failure
        words = f"{failure.kind}: {failure.message}" if failure else "the check did not pass"
        hint = (
            f'<br><span class="hint">{escape(failure.hint)}</span>'
            if failure and failure.hint
            else ""
        )
        lines.append(f"<li><b>{escape(bundle)}, {escape(title)}</b>: {escape(words)}{hint}")
    return f"<h2>What failed</h2><ul>{''.join(lines)}</ul>"


def _bundle(name: str, bundle: BundleResult) -> str:
    about = f"{bundle.lowering}, {bundle.precision}"
    if bundle.weights:
        about += f", weights {', '.join(bundle.weights)}"
    parts = [
        f"<h2>{escape(name)}</h2>",
        f"<p>{_badge(bundle.status)} {escape(about)}; {bundle.capacity} tokens; seal "
        f"{escape(bundle.seal[:16])}.</p>",
    ]
    if bundle.reason:
        parts.append(f"<p>{escape(bundle.reason)}</p>")
    speed = bundle.speed.items()
    parts.append(
        _bars(
            "Tokens per second", [(mode, each.tokens_per_second) for mode, each in speed], "{:.1f}"
        )
    )
    joules = [(mode, each.joules_per_token) for mode, each in speed]
    parts.append(
        _bars(
            "Joules per token",
            [(mode, value) for mode, value in joules if value is not None],
            "{:.2f}",
        )
    )
    parts.append(
        _bars("Error as a share of what is allowed", list(_errors(bundle)), "{:.1%}", full=1.0)
    )
    parts.append(
        _bars(
            "Seconds of each step",
            [(t, step.seconds) for t, step in bundle.steps.items()],
            "{:.1f}",
        )
    )
    parts.append(_steps(bundle.steps))
    return "".join(parts)


def _errors(bundle: BundleResult) -> Iterable[tuple[str, float]]:
    """Yield the largest error of each decoder's numbers, in units of the tolerance."""
    for title, step in bundle.steps.items():
        errors, tolerance = step.facts.get("relative_errors"), step.facts.get("tolerance")
        if isinstance(errors, dict) and isinstance(tolerance, float) and errors:
            yield title, max(errors.values()) / tolerance


def _steps(steps: dict[str, Step]) -> str:
    rows = [
        f"<tr><td>{_badge('passed' if step.passed else 'failed')}<td>{escape(title)}"
        f"<td>{step.seconds:.1f} s"
        for title, step in steps.items()
    ]
    return f"<table>{''.join(rows)}</table>"


def _bars(
    title: str, rows: Sequence[tuple[str, float]], form: str, full: float | None = None
) -> str:
    """Return a bar for each row, SVG; `full` is the value of a whole bar, or None for the largest."""
    if not rows:
        return ""
    whole = full or max(value for _, value in rows) or 1.0
    room = _WIDTH - _LABEL - 80
    bars = []
    for index, (label, value) in enumerate(rows):
        top = index * _BAR
        width = max(1.0, room * min(1.0, value / whole))
        colour = "#c62828" if full and value > full else "#1565c0"
        bars.append(
            f'<text x="0" y="{top + 15}">{escape(label)}</text>'
            f'<rect x="{_LABEL}" y="{top + 4}" width="{width:.1f}" height="14" fill="{colour}"/>'
            f'<text x="{_LABEL + width + 6:.1f}" y="{top + 15}">{form.format(value)}</text>'
        )
    height = len(rows) * _BAR + 4
    return (
        f'<h3>{escape(title)}</h3><svg role="img" aria-label="{escape(title)}" width="{_WIDTH}" '
        f'height="{height}" viewBox="0 0 {_WIDTH} {height}">{"".join(bars)}</svg>'
    )


def _badge(status: str) -> str:
    return f'<b style="color:{_COLOURS[status]}">{status.upper()}</b>'
