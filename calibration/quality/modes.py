"""The modes that are compared: their names, and what each of them runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...errors import UsageError
from ...export.arbiter_folder import read_arbiter
from ...runtime.arbitration.baselines import baseline
from ...runtime.sampling.params import SamplingParams
from ..journal import digest
from ..tasks.item import Task

BASELINE_THRESHOLD = 0.5  # baselines score 0 or 1


@dataclass(frozen=True)
class Mode:
    """One way of decoding.

    Attributes:
        name: its name in results.
        kind: `target` and `draft` decode greedily with that model alone, and `sample` draws from the
            target alone; `strict` speculates exactly; in `collab` the learned arbiter decides, and in
            `baseline` a rule.
        threshold: score above which a draft token is kept, in `collab`.
        graph: an arbiter graph for `collab`; None for the bundle's own.
        rule: the baseline, as `arbitration.baselines.baseline` reads it; for `sample`,
            `sample:TEMPERATURE,SEED`.
    """

    name: str
    kind: Literal["target", "draft", "sample", "strict", "collab", "baseline"]
    threshold: float | None = None
    graph: Path | None = None
    rule: str | None = None

    @property
    def is_judged(self) -> bool:
        """Whether an arbiter or a rule decides at mismatches."""
        return self.kind in ("collab", "baseline")

    @property
    def is_plain(self) -> bool:
        """Whether one model decodes alone."""
        return self.kind in ("target", "draft", "sample")


PLAIN = (Mode("target", "target"), Mode("draft", "draft"), Mode("strict", "strict"))
"""The modes that every arbiter is compared with."""


def split_names(text: str) -> list[str]:
    """Split `a,b,typical:0.3,0.09` at its commas, except those between a rule's parameters."""
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
    """Return the modes that `names` list, each once.

    Args:
        names: `target`, `draft`, `strict`, `collab`, `collab@THRESHOLD`, `random` (the rate at which
            the first collab mode overrides), `sample:TEMPERATURE,SEED` or a baseline such as
            `random:0.1`.
        own_threshold: threshold of the bundle's arbiter, for `collab`; None for a bundle without one.
        thresholds: thresholds for `collab` instead of that one, one mode each.
        graphs: arbiters instead of the bundle's own, one set of collab modes each: the path of a
            graph, or a folder as `cospec-calibrate arbiter` writes it, with a threshold of its own.

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
        elif name.startswith("sample:"):
            modes.append(_sample(name))
        elif name == "random":
            modes.append(Mode("random", "baseline"))
        else:
            baseline(name)
            modes.append(Mode(name, "baseline", BASELINE_THRESHOLD, rule=name))
    unique = {mode.name: mode for mode in modes}
    if not unique:
        raise UsageError("no modes to run", hint="for example: --modes target,strict,collab")
    if "random" in unique and not any(mode.kind == "collab" for mode in modes):
        raise UsageError(
            "'random' takes the override rate of a collab mode, and there is none",
            hint="add the mode collab, or give the rate: random:0.1",
        )
    return list(unique.values())


def sampling_of(mode: Mode, task: Task) -> SamplingParams | None:
    """Return how `mode` draws tokens for a task, and the task's stop texts; None for neither."""
    if mode.kind != "sample" or mode.rule is None:
        return SamplingParams(stop=task.stop) if task.stop else None
    temperature, _, seed = mode.rule.removeprefix("sample:").partition(",")
    # A seed for each item: the draws do not depend on which worker runs what, in which order.
    number = int(digest(f"{seed}/{task.id}"), 16)
    return SamplingParams(temperature=float(temperature), seed=number, stop=task.stop)


def _sample(name: str) -> Mode:
    temperature, _, seed = name.removeprefix("sample:").partition(",")
    if not (_is_number(temperature) and float(temperature) > 0 and (seed or "0").isdecimal()):
        raise UsageError(
            f"'{name}' is not sample:TEMPERATURE,SEED",
            hint="the temperature is above 0 and the seed a whole number, such as sample:0.7,1",
        )
    SamplingParams(temperature=float(temperature))  # refuses what is too high
    return Mode(name, "sample", rule=name)


def _collab(
    thresholds: Sequence[float], own_threshold: float | None, graphs: Sequence[Path]
) -> list[Mode]:
    """Return a mode for each graph and threshold."""
    if not graphs and own_threshold is None:
        raise UsageError(
            "this bundle has no arbiter, so the mode 'collab' cannot be run",
            hint="train one with cospec-calibrate arbiter, or give one with --arbiter",
        )
    default = 0.5 if own_threshold is None else own_threshold
    modes = []
    choices: list[tuple[Path | None, float]] = [_graph_of(path, default) for path in graphs]
    for number, (graph, own) in enumerate(choices or [(None, default)], 1):
        name = "collab" if len(graphs) < 2 else f"collab[{number}]"
        if not thresholds:
            modes.append(Mode(name, "collab", own, graph))
        for threshold in thresholds:
            modes.append(Mode(f"{name}@{threshold:g}", "collab", threshold, graph))
    return modes


def _graph_of(path: Path, threshold: float) -> tuple[Path, float]:
    """Return the graph of an arbiter and its threshold; a graph alone has the given one."""
    if not path.is_dir():
        return path, threshold
    folder = read_arbiter(path)
    return folder.graph, folder.threshold


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
