"""The result of a speed measurement as text."""

from __future__ import annotations

from typing import Any

from ...calibration.tables import markdown_table

_COLUMNS = (
    *("runtime", "weights", "mode", "setting", "tok/s", "decode", "vs plain", "first ms"),
    *("MB", "accepted", "same text"),
)


def as_markdown(result: dict[str, Any]) -> str:
    """Return tables of the rows, the bounds, the best rows and the ratios, in Markdown."""
    parts = [
        markdown_table(
            _COLUMNS, [_cells(figure) for figure in result["rows"] if "skipped" not in figure]
        )
    ]
    parts += [
        f"SKIPPED: {figure['name']} {figure['format']} {figure['mode']}: {figure['skipped']}"
        for figure in result["rows"]
        if "skipped" in figure
    ]
    bounds = result["bounds"]
    parts.append(f"Memory is read at {bounds['read_bytes_per_second'] / 1e9:.1f} GB/s.")
    for weights, bound in bounds["formats"].items():
        line = (
            f"{weights}: {bound['streamed_bytes'] / 1e6:.0f} MB of weights a pass bound the target "
            f"alone to {bound['target_only_tokens_per_second']:.1f} tok/s"
        )
        share = bound["share_reached_by_our_target"]
        parts.append(line + ("." if share is None else f"; ours decodes at {share:.0%} of it."))
    parts += [_best_table(result["best"]), *_ratio_lines(result["ratios"])]
    environment = result["environment"]
    parts.append(
        f"{environment['cpu']}, {environment['threads']} threads, {environment['rounds']} rounds of "
        f"{environment['tokens']} tokens; load {environment['load_before']:.1f} before, "
        f"{environment['load_after']:.1f} after."
    )
    return "\n\n".join(parts)


def _best_table(best: dict[str, Any]) -> str:
    """Return the best row of each runtime: a line a format of the target, a column a runtime."""
    lines = {**best["by_target_format"], "any": best["overall"]}
    names = list(best["overall"])

    def cell(found: dict[str, Any] | None) -> str:
        if found is None:
            return "-"
        return f"{found['tokens_per_second']:.1f} ({found['format']} {found['mode']})"

    body = [[title, *(cell(line.get(name)) for name in names)] for title, line in lines.items()]
    return markdown_table(("best tok/s with a target in", *names), body)


def _ratio_lines(ratios: dict[str, Any]) -> list[str]:
    titled = {
        **ratios["by_format"],
        **{f"target {name}": ratio for name, ratio in ratios["by_target_format"].items()},
        "any format": ratios["overall"],
    }
    return [
        f"{title}: {ratio['ours']} is {ratio['ratio']:.2f} times {ratio['best_peer']}."
        for title, ratio in titled.items()
        if ratio
    ]


def _cells(figure: dict[str, Any]) -> list[str]:
    speedup, acceptance = figure["speedup"], figure.get("acceptance")
    same = (
        "yes" if figure.get("equal_to_ours") else f"{figure.get('tokens_equal_to_ours', '-')} tok"
    )
    return [
        figure["name"],
        figure["format"],
        figure["mode"],
        figure["setting"] or "-",
        f"{figure['tokens_per_second']:.1f}",
        f"{figure['decode_tokens_per_second']:.1f}",
        "-" if speedup is None or figure["k"] == 0 else f"{speedup:.2f}",
        f"{figure['time_to_first_token_ms']:.0f}",
        f"{figure['peak_memory_bytes'] / 1e6:.0f}",
        "-" if acceptance is None else f"{acceptance:.0%}",
        same,
    ]
