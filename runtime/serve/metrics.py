"""Metrics for Prometheus, under vLLM's names where vLLM has them, so that its dashboards work.

They have its prefix `vllm:` and its labels `model_name` and `engine`; our own have `cospec:`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...errors import MissingExtraError
from ..decoding.loop import FinishReason
from ..decoding.stats import GenerationStats
from .answers import FINISH_REASONS

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500)
_SECONDS_A_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_ROUNDS = (0, 1, 2, 4, 8)


class Metrics:
    """The metrics of one server, in their own registry.

    Args:
        model: value of the label `model_name`.
        hide_hits: do not count the prompt tokens that a cache held.

    Raises:
        MissingExtraError: prometheus_client is not installed.
    """

    def __init__(self, model: str, *, hide_hits: bool = False) -> None:
        try:
            import prometheus_client
        except ImportError as error:
            raise MissingExtraError("prometheus-client", "serve", "Serving") from error
        self._client = prometheus_client
        self._registry = prometheus_client.CollectorRegistry()
        self._labels = {"model_name": model, "engine": "0"}
        self._hide_hits = hide_hits
        counter, histogram = self._counter, self._histogram
        self._prompt = counter("vllm:prompt_tokens", "Prompt tokens of the requests.")
        self._generated = counter("vllm:generation_tokens", "Tokens generated.")
        self._queries = counter("vllm:prefix_cache_queries", "Prompt tokens looked up in a cache.")
        self._hits = counter("vllm:prefix_cache_hits", "Prompt tokens found in a cache.")
        self._drafts = counter("vllm:spec_decode_num_drafts", "Forward passes with draft tokens.")
        self._drafted = counter("vllm:spec_decode_num_draft_tokens", "Draft tokens.")
        self._accepted = counter("vllm:spec_decode_num_accepted_tokens", "Accepted draft tokens.")
        self._accepted_at = counter(
            "vllm:spec_decode_num_accepted_tokens_per_pos",
            "Accepted draft tokens by position.",
            "position",
        )
        self._success = counter("vllm:request_success", "Finished requests.", "finished_reason")
        self._ttft = histogram(
            "vllm:time_to_first_token_seconds", "From arrival to the first tokens.", _SECONDS
        )
        self._tpot = histogram(
            "vllm:request_time_per_output_token_seconds",
            "Seconds per token after the first round.",
            _SECONDS_A_TOKEN,
        )
        self._latency = histogram(
            "vllm:e2e_request_latency_seconds", "From arrival to the end of the answer.", _SECONDS
        )
        self._queued = histogram("vllm:request_queue_time_seconds", "Time in the queue.", _SECONDS)
        self._passes = counter("cospec:target_passes", "Forward passes of the target.")
        self._mismatches = counter("cospec:mismatches", "Positions where the models disagreed.")
        self._overrides = counter("cospec:overrides", "Mismatches where the draft token was kept.")
        self._refused = counter("cospec:requests_refused", "Requests that were refused.", "reason")
        self._rounds_after_cancel = histogram(
            "cospec:rounds_after_cancel", "Rounds computed after the client had left.", _ROUNDS
        )

    @property
    def content_type(self) -> str:
        """Content type of what `render` returns."""
        return str(self._client.CONTENT_TYPE_LATEST)

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return bytes(self._client.generate_latest(self._registry))

    def watch(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Add a gauge whose value is read when the metrics are rendered."""
        gauge = self._client.Gauge(name, text, list(self._labels), registry=self._registry)
        gauge.labels(**self._labels).set_function(read)

    def refused(self, reason: str) -> None:
        """Count a refused request."""
        self._refused.labels(**self._labels, reason=reason).inc()

    def waited(self, seconds: float) -> None:
        """Record the time that a request waited for a slot."""
        self._queued.observe(seconds)

    def first_tokens(self, seconds: float) -> None:
        """Record the time from arrival to the first tokens."""
        self._ttft.observe(seconds)

    def cancelled(self, rounds: int) -> None:
        """Record the rounds that were computed after a client had left."""
        self._rounds_after_cancel.observe(rounds)

    def ended(self, stats: GenerationStats, finish: FinishReason | None, seconds: float) -> None:
        """Record a generation that had a slot; a finish reason of None is an error."""
        self._prompt.inc(stats.num_prompt_tokens)
        self._queries.inc(stats.num_prompt_tokens)
        if not self._hide_hits:
            self._hits.inc(stats.num_cached_tokens)
        self._generated.inc(stats.num_generated_tokens)
        self._drafts.inc(stats.num_drafts)
        self._drafted.inc(stats.num_draft_tokens)
        self._accepted.inc(stats.num_accepted_tokens)
        self._passes.inc(stats.num_target_passes)
        self._mismatches.inc(stats.num_mismatches)
        self._overrides.inc(stats.num_overrides)
        for position, count in enumerate(stats.num_accepted_tokens_per_pos):
            self._accepted_at.labels(**self._labels, position=str(position)).inc(count)
        reason = "error" if finish is None else FINISH_REASONS.get(finish, "abort")
        self._success.labels(**self._labels, finished_reason=reason).inc()
        self._latency.observe(seconds)
        if stats.tpot is not None:
            self._tpot.observe(stats.tpot)

    def _counter(self, name: str, text: str, *more: str) -> Any:
        names = [*self._labels, *more]
        made = self._client.Counter(name, text, names, registry=self._registry)
        return made if more else made.labels(**self._labels)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Any:
        made = self._client.Histogram(
            name, text, list(self._labels), registry=self._registry, buckets=buckets
        )
        return made.labels(**self._labels)
