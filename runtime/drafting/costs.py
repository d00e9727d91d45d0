"""What the parts of a round cost on this machine, measured before the first round.

Rounds alone would not show the cost of widths that are not in use, and the best may be among them. The
measurement feeds arbitrary tokens to decoders of its own, so it disturbs no generation.
"""

from __future__ import annotations

from statistics import median
from threading import Lock
from time import perf_counter

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
    """

    def __init__(self, target: Engine, draft: Engine | None) -> None:
        self._engines = (target, draft)
        self._costs: Costs | None = None
        self._lock = Lock()

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
    context = min(CONTEXT, target.capacity // 2)
    widths = range(1, min(longest + 1, target.capacity - context) + 1)
    verify = [median(each[1:]) for each in time_passes(target, context, widths, REPEATS)]
    if draft is None:
        return Costs(LOOKUP_SECONDS, verify)
    (steps,) = time_passes(draft, context, range(1, 2), REPEATS)
    return Costs(median(steps[1:]), verify)


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
