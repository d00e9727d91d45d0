"""What the parts of a round cost, known before the first round.

Rounds alone would not show the cost of widths that are not in use, and the best may be among them. A
bundle records what the export measured. Where it does not, or where the models do not run on a CPU,
the first need measures: arbitrary tokens go to decoders of its own, which disturbs no generation.
"""

from __future__ import annotations

from statistics import median
from threading import Lock
from time import perf_counter

from ..bundle.manifest import Models
from ..engines.protocol import Decoder, Engine
from .draft_length import LONGEST_AUTO_DRAFT, Costs

REPEATS = 4
"""Passes of each width; the first one prepares buffers and is not counted."""

CONTEXT = 64
"""Tokens in the cache while measuring, or half of a smaller one."""

LOOKUP_SECONDS = 1e-5
"""Cost of a draft token that is looked up and not computed."""


class MeasuredCosts:
    """The costs of engines, measured when they are first needed and then kept.

    Args:
        target: engine of the target.
        draft: engine of the draft, or None if tokens are looked up.
        recorded: costs that are known already.
    """

    def __init__(self, target: Engine, draft: Engine | None, recorded: Costs | None = None) -> None:
        self._engines = (target, draft)
        self._costs = recorded
        self._lock = Lock()

    @property
    def are_known(self) -> bool:
        """Whether `get` returns at once."""
        return self._costs is not None

    def get(self) -> Costs:
        """Return the costs; the first call makes some dozens of forward passes.

        Raises:
            BackendError: a backend failed.
        """
        with self._lock:
            if self._costs is None:
                target, draft = self._engines
                own = None if draft is None else draft.decoder()
                self._costs = measure_costs(target.decoder(), own, LONGEST_AUTO_DRAFT)
            return self._costs


def measure_costs(target: Decoder, draft: Decoder | None, longest: int) -> Costs:
    """Time passes of every width. What the decoders hold is dropped.

    Args:
        target: its decoder.
        draft: the draft's decoder, or None if tokens are looked up.
        longest: most tokens to draft per round; fewer if the capacity is small.

    Raises:
        BackendError: a backend failed.
    """
    verify = pass_seconds(target, longest + 1)
    return Costs(LOOKUP_SECONDS if draft is None else pass_seconds(draft, 1)[0], verify)


def pass_seconds(decoder: Decoder, widest: int) -> list[float]:
    """Return the median times of passes of 1, 2, ... `widest` tokens, or what the capacity takes."""
    context = min(CONTEXT, decoder.capacity // 2)
    widths = range(1, min(widest, decoder.capacity - context) + 1)
    return [median(each[1:]) for each in time_passes(decoder, context, widths, REPEATS)]


def recorded_costs(models: Models, target: Engine, draft: Engine | None) -> Costs | None:
    """Return the costs that a bundle records, or None if these engines need a measurement.

    Args:
        models: of the bundle.
        target: engine of the target.
        draft: engine of the draft, or None if tokens are looked up.
    """
    on_cpu = all(getattr(each, "device", "cpu") == "cpu" for each in (target, draft) if each)
    verify = models.target.pass_seconds
    step: tuple[float, ...] = (LOOKUP_SECONDS,)
    if draft is not None:
        step = () if models.draft is None else models.draft.pass_seconds[:1]
    return Costs(step[0], verify) if on_cpu and len(verify) > 1 and step else None


def time_passes(decoder: Decoder, context: int, widths: range, repeats: int) -> list[list[float]]:
    """Return the seconds of passes of each width, with the widths interleaved.

    Args:
        decoder: what it holds is dropped.
        context: tokens in the cache before each pass, and afterwards.
        widths: tokens per pass.
        repeats: number of passes of each width.
    """
    decoder.truncate(0)
    decoder.step([0] * context)
    seconds: dict[int, list[float]] = {width: [] for width in widths}
    for _ in range(repeats):
        for width in widths:
            started = perf_counter()
            decoder.step([0] * width)
            seconds[width].append(perf_counter() - started)
            decoder.truncate(context)
    return list(seconds.values())
