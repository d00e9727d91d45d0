"""Decides when each request is decoded: a few slots, and a bounded queue in front of them."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from ..decoding.caches import common_prefix
from ..decoding.completion import Piece, Stream
from ..decoding.generation import Plan
from ..decoding.session import Session
from ..trace.page import render
from ..trace.record import Trace
from .metrics import Metrics
from .refusals import queue_full, shutting_down, timed_out

_LONGEST_RETRY_AFTER = 60
"""Seconds. OpenAI's client ignores longer values and uses its own, shorter pause."""
_MEMORY = 0.8
"""Weight of the running mean of answer times when the next one is added."""


@dataclass(frozen=True)
class Order:
    """A request that is ready to be decoded.

    Attributes:
        plan: of its generation. Its timeout includes the time in the queue.
        arrived: time of arrival, on the clock of `perf_counter`.
        owner: index of the API key that it came with.
        is_first: whether it is the first order of its request. Later ones have a place in the queue.
        echo: text of the prompt, which becomes the first piece; with log-probabilities if the plan asks
            for them.
        writes: generate; False only returns the prompt.
        trace: observes the generation.
    """

    plan: Plan
    arrived: float
    owner: int = 0
    is_first: bool = True
    echo: str | None = None
    writes: bool = True
    trace: Trace | None = None

    def page(self, stream: Stream) -> str | None:
        """Return the page of the trace of a generation that has ended."""
        return None if self.trace is None else render([self.trace.to_json(stream.completion())])

    def prompt_piece(self, session: Session) -> Piece:
        """Return the prompt as a piece; its first token has no log-probability."""
        tokens, top = list(self.plan.tokens), self.plan.options.logprobs
        scores: list[Any] = []
        if top is not None:
            scores = [None, *session.score(tokens, top=top, interrupt=self.plan.interrupt)]
        return Piece(self.echo or "", tokens, ["target"] * len(tokens), scores)


@dataclass(eq=False)
class Slot:
    """A session, and whose text its caches hold."""

    session: Session
    owner: int = 0

    def shared(self, order: Order) -> int:
        """Return how many leading tokens of a prompt need not be read again.

        One client must not learn from this number, or from the time, what another one asked.
        """
        if self.owner != order.owner:
            return 0
        return common_prefix(self.session.caches.tokens, order.plan.tokens)

    def lend(self, owner: int) -> Session:
        """Return the session for an order of `owner`, without what others left in its caches."""
        if self.owner != owner:
            self.session.forget()
            self.owner = owner
        return self.session


class Scheduler:
    """Gives each order a slot, in the order of arrival. Belongs to one event loop.

    Args:
        sessions: one for each slot, on the same engines.
        max_queue: number of orders that may wait.
        timeout: seconds that an order may take, waiting included.
        metrics: where figures are recorded.
    """

    def __init__(
        self, sessions: Sequence[Session], max_queue: int, timeout: float, metrics: Metrics
    ) -> None:
        self._slots = [Slot(session) for session in sessions]
        self._free = list(self._slots)
        self._waiting: deque[asyncio.Future[Slot]] = deque()
        self._max_queue = max_queue
        self._timeout = timeout
        self._metrics = metrics
        self._threads = ThreadPoolExecutor(len(sessions), thread_name_prefix="cospec-slot")
        self._mean_seconds = 0.0
        self._closed = False
        metrics.watch("vllm:num_requests_running", "Requests in a slot.", lambda: self.running)
        metrics.watch("vllm:num_requests_waiting", "Requests in the queue.", lambda: self.waiting)
        metrics.watch("vllm:kv_cache_usage_perc", "Share of the caches in use.", self._cache_usage)

    @property
    def running(self) -> int:
        """Orders that have a slot."""
        return len(self._slots) - len(self._free)

    @property
    def waiting(self) -> int:
        """Orders in the queue."""
        return len(self._waiting)

    @property
    def closed(self) -> bool:
        """Whether new orders are refused."""
        return self._closed

    def close(self) -> None:
        """Refuse new and waiting orders; those that have a slot continue."""
        self._closed = True
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_exception(shutting_down())

    def ensure_room(self) -> None:
        """Refuse an order for which there is no room.

        Raises:
            RefusedError: the queue is full, or the server is shutting down.
        """
        if self._closed:
            raise shutting_down()
        if not self._free and self.waiting >= self._max_queue:
            seconds = (self.waiting + 1) * self._mean_seconds / len(self._slots)
            raise queue_full(self.waiting, min(_LONGEST_RETRY_AFTER, max(1, math.ceil(seconds))))

    async def generate(self, order: Order, put: Callable[[Piece], None]) -> Stream:
        """Wait for a slot and decode an order to its end.

        When the task that runs this is cancelled, the order leaves the queue, or ends after the round
        that is being computed; its slot is free after that round.

        Args:
            order: what to decode.
            put: called in the event loop with each piece.

        Returns:
            The stream, which has ended.

        Raises:
            RefusedError: no room, out of time, or the server is shutting down.
            CospecError: what the generation raised.
        """
        slot = await self._turn(order)
        try:
            return await self._decode(slot.lend(order.owner), order, put)
        finally:
            self._release(slot)

    async def _turn(self, order: Order) -> Slot:
        """Wait for a slot."""
        if order.is_first:
            self.ensure_room()
        if self._free:
            slot = max(self._free, key=lambda one: one.shared(order))
            self._free.remove(slot)
        else:
            slot = await self._wait(order)
        self._metrics.waited(perf_counter() - order.arrived)
        return slot

    async def _wait(self, order: Order) -> Slot:
        turn: asyncio.Future[Slot] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            # Shielded: a slot that is handed over at the same moment must not get lost.
            return await asyncio.wait_for(asyncio.shield(turn), self._left(order))
        except BaseException as error:
            if turn in self._waiting:
                self._waiting.remove(turn)
            elif turn.done() and turn.exception() is None:
                self._release(turn.result())
            if isinstance(error, asyncio.TimeoutError):
                raise timed_out(self._timeout, queued=True) from None
            raise

    def _release(self, slot: Slot) -> None:
        """Hand a slot to the order that has waited longest."""
        if self._waiting:
            self._waiting.popleft().set_result(slot)
        else:
            self._free.append(slot)

    async def _decode(self, session: Session, order: Order, put: Callable[[Piece], None]) -> Stream:
        stream = session.run(order.plan)
        loop = asyncio.get_running_loop()

        def first(piece: Piece) -> None:
            if piece.tokens:
                self._metrics.first_tokens(perf_counter() - order.arrived)
            put(piece)

        def run() -> None:
            if order.echo is not None:
                loop.call_soon_threadsafe(put, order.prompt_piece(session))
            if not order.writes:
                stream.finish_reason = order.plan.interrupt.reason() or "length"
                return
            hand_on: Callable[[Piece], None] = first
            for piece in stream:
                loop.call_soon_threadsafe(hand_on, piece)
                hand_on = put
            if order.echo is not None:  # the prompt was read just now, to score it
                stream.stats.num_cached_tokens = 0

        started = perf_counter()
        ending = loop.run_in_executor(self._threads, run)
        try:
            await asyncio.shield(ending)
        except asyncio.CancelledError:
            stream.cancel()
            before = stream.stats.num_target_passes
            await ending
            self._metrics.cancelled(stream.stats.num_target_passes - before)
            raise
        finally:
            now = perf_counter()
            self._mean_seconds += (1 - _MEMORY) * (now - started - self._mean_seconds)
            self._metrics.ended(stream.stats, stream.finish_reason, now - order.arrived)
        if stream.finish_reason == "timeout":
            raise timed_out(self._timeout, queued=False)
        return stream

    def _left(self, order: Order) -> float:
        return order.arrived + self._timeout - perf_counter()

    def _cache_usage(self) -> float:
        sessions = [slot.session for slot in self._slots]
        held = sum(len(one.caches.tokens) / one.manifest.capacity for one in sessions)
        return held / len(sessions)
