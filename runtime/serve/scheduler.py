"""Who decodes when: a few sessions, and a queue of bounded length in front of them."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter

from ..decoding.completion import Piece, Stream
from ..decoding.session import Session
from .metrics import Metrics
from .refusals import queue_full, shutting_down, timed_out
from .requests import Request

_LONGEST_RETRY_AFTER = 60
"""Seconds. Clients wait no longer anyway: OpenAI's takes its own, shorter, pause then."""
_MEMORY = 0.8
"""Share of the running mean that stays when another answer's time is added."""


@dataclass(frozen=True)
class Order:
    """A request that can be decoded.

    Attributes:
        request: what is asked.
        prompt_tokens: its prompt, to find the session that knows most of it.
        arrived: on the clock of `perf_counter`.
    """

    request: Request
    prompt_tokens: Sequence[int]
    arrived: float


class Scheduler:
    """Gives each order a session, first come, first served. Belongs to one event loop.

    Args:
        sessions: the decoding slots, on the same engines.
        max_queue: orders that may wait.
        timeout: seconds that an order may take, waiting included.
        metrics: counts.
    """

    def __init__(
        self, sessions: Sequence[Session], max_queue: int, timeout: float, metrics: Metrics
    ) -> None:
        self._sessions = list(sessions)
        self._free = list(sessions)
        self._waiting: deque[asyncio.Future[Session]] = deque()
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
        return len(self._sessions) - len(self._free)

    @property
    def waiting(self) -> int:
        """Orders in the queue."""
        return len(self._waiting)

    @property
    def closed(self) -> bool:
        """Whether no more orders are taken."""
        return self._closed

    def close(self) -> None:
        """Take no more orders and refuse those that wait; those that have a slot go on."""
        self._closed = True
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_exception(shutting_down())

    def ensure_room(self) -> None:
        """Refuse an order that would have no place.

        Raises:
            RefusedError: the queue is full, or the server shuts down.
        """
        if self._closed:
            raise shutting_down()
        if not self._free and self.waiting >= self._max_queue:
            seconds = (self.waiting + 1) * self._mean_seconds / len(self._sessions)
            raise queue_full(self.waiting, min(_LONGEST_RETRY_AFTER, max(1, math.ceil(seconds))))

    async def generate(self, order: Order, put: Callable[[Piece], None]) -> Stream:
        """Decode an order to its end, when it is its turn.

        Cancel the task that runs this, and the order leaves the queue or ends with the round that is
        being decoded; its slot is free when that round is over.

        Args:
            order: what to decode.
            put: called in the event loop with each piece.

        Returns:
            The stream, which has ended.

        Raises:
            RefusedError: no room, no time, or the server shuts down.
            CospecError: what the generation raised.
        """
        session = await self._turn(order)
        try:
            return await self._decode(session, order, put)
        finally:
            self._release(session)

    async def _turn(self, order: Order) -> Session:
        """Wait for a session."""
        self.ensure_room()
        if self._free:
            session = max(self._free, key=lambda one: _shared(one, order.prompt_tokens))
            self._free.remove(session)
        else:
            session = await self._wait(order)
        self._metrics.waited(perf_counter() - order.arrived)
        return session

    async def _wait(self, order: Order) -> Session:
        turn: asyncio.Future[Session] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            # Shielded: a session that is handed over in the same moment must not get lost.
            return await asyncio.wait_for(asyncio.shield(turn), self._left(order))
        except BaseException as error:
            if turn in self._waiting:
                self._waiting.remove(turn)
            elif turn.done() and turn.exception() is None:
                self._release(turn.result())
            if isinstance(error, asyncio.TimeoutError):
                raise timed_out(self._timeout, queued=True) from None
            raise

    def _release(self, session: Session) -> None:
        """Hand a session to whoever waits longest."""
        if self._waiting:
            self._waiting.popleft().set_result(session)
        else:
            self._free.append(session)

    async def _decode(self, session: Session, order: Order, put: Callable[[Piece], None]) -> Stream:
        left = self._left(order)
        if left <= 0:
            raise timed_out(self._timeout, queued=True)
        asked = order.request
        stream = session.stream(
            asked.prompt,
            max_tokens=asked.max_tokens,
            num_draft_tokens=asked.num_draft_tokens,
            sampling=asked.sampling,
            mode=asked.mode,
            threshold=asked.threshold,
            timeout=left,
        )
        loop = asyncio.get_running_loop()

        def first(piece: Piece) -> None:
            if piece.tokens:
                self._metrics.first_tokens(perf_counter() - order.arrived)
            put(piece)

        def run() -> None:
            hand_on: Callable[[Piece], None] = first
            for piece in stream:
                loop.call_soon_threadsafe(hand_on, piece)
                hand_on = put

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
        held = sum(len(one.caches.tokens) / one.manifest.capacity for one in self._sessions)
        return held / len(self._sessions)


def _shared(session: Session, tokens: Sequence[int]) -> int:
    """Return how many leading tokens of a prompt a session has read."""
    count = 0
    for ours, theirs in zip(session.caches.tokens, tokens, strict=False):
        if ours != theirs:
            break
        count += 1
    return count
