"""The modes of an item read its prompt once, and each answers and pays as it would alone."""

from __future__ import annotations

from dataclasses import replace

from cospec.calibration.quality import mode_runner
from cospec.calibration.quality.mode_runner import ModeJob, ModeRunner, QualityConfig
from cospec.calibration.quality.modes import parse_modes
from cospec.calibration.tasks.resolve import resolve_tasks
from cospec.runtime.decoding.session import Session

NAMES = ["target", "random:0.3", "strict", "sample:0.7,1", "draft", "always-draft"]


def test_answers_are_those_of_modes_alone_and_prompts_are_read_once(tiny_pair_bundle, monkeypatch):
    modes = parse_modes(NAMES)
    tasks = resolve_tasks("tiny:validation", items=8)
    runner = ModeRunner(QualityConfig(tiny_pair_bundle), modes)
    apart = [runner.answers(ModeJob(task, (mode,)))[0] for task in tasks for mode in modes]

    streams = []
    stream = Session.stream
    monkeypatch.setattr(
        Session, "stream", lambda *a, **k: streams.append(stream(*a, **k)) or streams[-1]
    )
    together = [answer for task in tasks for answer in runner.answers(ModeJob(task, tuple(modes)))]

    assert [replace(a, seconds=0) for a in together] == [replace(a, seconds=0) for a in apart]
    lengths = [(each.stats.num_prompt_tokens, each.stats.num_cached_tokens) for each in streams]
    assert len(lengths) == 8 * len(modes)
    fresh = [length for length, cached in lengths if not cached]
    assert len(fresh) == 8 * 3, "once by both models, once by each alone"
    assert all(cached == length - 1 for length, cached in lengths if cached)


def test_the_reading_counts_for_each_mode(tiny_pair_bundle, monkeypatch):
    modes = parse_modes(["strict", "always-draft"])
    (task,) = resolve_tasks("tiny:validation", items=1)
    runner = ModeRunner(QualityConfig(tiny_pair_bundle), modes)
    runner.answers(ModeJob(task, tuple(modes)))  # warm
    clock = iter(range(1000))  # a second passes whenever somebody looks
    monkeypatch.setattr(mode_runner, "perf_counter", lambda: next(clock))
    reading = iter([50, 0])  # seconds; the second mode finds the prompt in the cache
    stream = Session.stream

    def slow_stream(*arguments, **options):
        for _ in range(next(reading)):
            next(clock)
        return stream(*arguments, **options)

    monkeypatch.setattr(Session, "stream", slow_stream)
    first, second = runner.answers(ModeJob(task, tuple(modes)))
    assert (first.seconds, second.seconds) == (52, 52)
