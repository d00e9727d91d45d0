"""The ways of decoding that are compared: what they are called, and what each of them runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...errors import UsageError
from ...runtime.arbitration.baselines import baseline

BASELINE_THRESHOLD = 0.5  # baselines score 0 or 1


@dataclass(frozen=True)
class Mode:
    """One way of decoding.

    Attributes:
        name: as it is called in results.
        kind: `target` and `draft` decode plainly with that model alone; `strict` speculates exactly;
            in `collab` the learned arbiter decides and in `baseline` a rule.
        threshold: score above which a draft token stays, in `collab`.
        graph: an arbiter graph for `collab`; None for the bundle's own.
        rule: the baseline, as `arbitration.baselines.baseline` reads it.
    """

    name: str
    kind: Literal["target", "draft", "strict", "collab", "baseline"]
    threshold: float | None = None
    graph: Path | None = None
    rule: str | None = None

    @property
    def is_judged(self) -> bool:
        """Whether somebody decides at mismatches."""
        return self.kind in ("collab", "baseline")


PLAIN = (Mode("target", "target"), Mode("draft", "draft"), Mode("strict", "strict"))
"""What every comparison holds an arbiter against."""


def split_names(text: str) -> list[str]:
    """Split `a,b,typical:0.3,0.09` at its commas, but for those between a rule's parameters."""
    names: list[str] = []
    for word in text.split(","):
        if names and ":" in names[-1] and _is_number(word):
            names[-1] += f",{word}"
        elif word.strip():
            names.append(word.strip())
    return names


def parse_modes(
    names: Sequence[str],
    *,
    own_threshold: float | None = None,
    thresholds: Sequence[float] = (),
    graphs: Sequence[Path] = (),
) -> list[Mode]:
    """Return the modes that `names` call for, each once.

    Args:
        names: `target`, `draft`, `strict`, `collab`, `collab@THRESHOLD`, `random` (the rate at which
            the first collab mode overrides) or a baseline such as `random:0.1`.
        own_threshold: of the bundle's arbiter, what `collab` means; None for a bundle without one.
        thresholds: what `collab` means instead, one mode each.
        graphs: arbiter graphs instead of the bundle's own, one set of collab modes each.

    Raises:
        UsageError: an unknown or impossible mode.
    """
    modes: list[Mode] = []
    for name in names:
        base, at, number = name.partition("@")
        if base == "collab":
            wanted = [_threshold(number)] if at else list(thresholds)
            modes += _collab(wanted, own_threshold, graphs)
        elif name in ("target", "draft", "strict"):
            modes.append(Mode(name, name))  # type: ignore[arg-type]
        elif name == "random":
            modes.append(Mode("random", "baseline"))
        else:
            baseline(name)
            modes.append(Mode(name, "baseline", BASELINE_THRESHOLD, rule=name))
    unique = {mode.name: mode for mode in modes}
    if not unique:
        raise UsageError("no modes to play", hint="for example: --modes target,strict,collab")
    if "random" in unique and not any(mode.kind == "collab" for mode in modes):
        raise UsageError(
            "'random' takes over the override rate of a collab mode, and there is none",
            hint="add the mode collab, or give the rate: random:0.1",
        )
    return list(unique.values())


def _collab(
    thresholds: Sequence[float], own_threshold: float | None, graphs: Sequence[Path]
) -> list[Mode]:
    """Return a mode for each graph and threshold."""
    if not graphs and own_threshold is None:
        raise UsageError(
            "this bundle has no arbiter, so the mode 'collab' cannot be played",
            hint="train one with cospec-calibrate arbiter, or give one with --arbiter FILE.onnx",
        )
    default = 0.5 if own_threshold is None else own_threshold
    modes = []
    choices: list[Path | None] = [*graphs] if graphs else [None]
    for number, graph in enumerate(choices, 1):
        name = "collab" if len(graphs) < 2 else f"collab[{number}]"
        if not thresholds:
            modes.append(Mode(name, "collab", default, graph))
        for threshold in thresholds:
            modes.append(Mode(f"{name}@{threshold:g}", "collab", threshold, graph))
    return modes


def _threshold(text: str) -> float:
    value = float(text) if _is_number(text) else -1.0
    if not 0 <= value <= 1:
        raise UsageError(f"the threshold in 'collab@{text}' must be a number from 0 to 1")
    return value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
