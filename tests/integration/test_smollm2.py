"""A real model through the whole path: SmolLM2-135M-Instruct from a GGUF file, 40 prompts x 64 tokens.

The proof of equality is one pass of transformers over each prompt with our output behind it: if every
generated token is the most likely one given all before it, the output is the greedy one, token for
token. Three prompts go through `generate` as well.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from cospec.export.memory import plan
from cospec.models.checkpoint import open_checkpoint
from cospec.models.presets import resolve
from cospec.runtime.bundle.reader import Bundle
from cospec.runtime.decoding.completion import Completion
from cospec.runtime.decoding.session import Session, load
from cospec.runtime.engines.onnxruntime import OrtEngine
from cospec.runtime.engines.protocol import GraphShape
from cospec.runtime.text.codec import TextCodec

pytestmark = [pytest.mark.slow, pytest.mark.wheel]

MAX_TOKENS = 64
BY_GENERATE = (0, 17, 33)
PARAMETERS = 134_515_008
# Between a chosen token and the runner-up, in units of the logits. Graph and reference differ by some
# 1e-4 (4e-6 of the largest); a difference at a closer call would say nothing.
NEAR_TIE = 1e-3

CHAT = (
    "Explain how a rainbow forms.",
    "Write a short story about a lighthouse keeper.",
    "List ten animals that live in the sea.",
    "Why is the sky blue at noon and red in the evening?",
    "Give me a recipe for pancakes, step by step.",
    "Translate 'good morning, my friend' into French, German and Spanish.",
    "Write a Python function that reverses a list, and explain each line.",
    "How is paper made from wood?",
    "Summarise the plot of Romeo and Juliet.",
    "Describe your favourite season in four sentences.",
    "How do plants turn sunlight into food?",
    "Write a poem about the first snow of winter.",
    "What is the difference between a virus and a bacterium?",
    "Count from one to thirty in words.",
    "Plan a birthday party for a six-year-old.",
    "Explain compound interest with an example.",
    "What are the planets of the solar system, and what is each known for?",
    "Write a polite letter that asks the landlord to repair the heating.",
    "How does a bicycle stay upright?",
    "What does a lighthouse do?",
)
TEXT = (
    "Once upon a time, in a small village by the river,",
    "The three laws of motion are as follows:\n1.",
    "def fibonacci(n):\n",
    "Dear Sir or Madam,\n\nI am writing to",
    "The recipe calls for two cups of flour, one cup of sugar,",
    "In 1969, two astronauts",
    "The capital of Italy is Rome. The capital of Germany is Berlin. The capital of",
    "Q: What is 7 times 8?\nA:",
    "import numpy as np\n\ndef mean(values):",
    "She opened the door and saw",
    "The most important thing about learning a language is",
    "To be, or not to be,",
    '{"name": "Alice", "age": 30, "city":',
    "Water boils at 100 degrees Celsius because",
    "one two three four five six seven eight nine ten one two three four",
    "The quick brown fox jumps over the lazy dog. The quick brown fox",
    "A is for apple, B is for ball, C is for",
    "SELECT name, age FROM users WHERE",
    "Monday: rice and beans. Tuesday: soup. Wednesday:",
    "Über die Berge und durch das Tal",
)


@dataclass(frozen=True)
class Exported:
    """The bundle, and the peak memory of the process that exported it (None off Linux)."""

    path: Path
    peak_bytes: int | None


@dataclass(frozen=True)
class Answer:
    """One prompt, as tokens, with what came out."""

    prompt: list[int]
    completion: Completion


EXPORT = """
import sys
from pathlib import Path
from cospec.export.cli import main
try:
    main(sys.argv[1:])
finally:
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    print(*(line for line in lines if line.startswith("VmHWM")), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def exported(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    output = tmp_path_factory.mktemp("models") / "smollm2"
    arguments = ["--target", str(smollm2_gguf), "--draft", "none", "--output", str(output)]
    arguments += ["--weights", "fp32"]  # kept weights compute in 8 bits, and round another way
    done = subprocess.run(
        [sys.executable, "-c", EXPORT, *arguments],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    last = done.stderr.split()[-3:]  # "VmHWM:  123456 kB"
    return Exported(output, int(last[1]) * 1024 if last[:1] == ["VmHWM:"] else None)


@pytest.fixture(scope="module")
def by_ngram(exported: Exported) -> list[Answer]:
    return answers(load(exported.path, drafter="ngram"))


@pytest.fixture(scope="module")
def module(smollm2_gguf: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        smollm2_gguf.parent, gguf_file=smollm2_gguf.name, dtype=torch.float32
    ).eval()


def test_the_export_stays_within_its_memory(exported, smollm2_gguf):
    if exported.peak_bytes is None:
        pytest.skip("peak memory is read from /proc")
    checkpoint = open_checkpoint(resolve(str(smollm2_gguf)))
    limit = plan([checkpoint], "fp32", 1024, smollm2_gguf).peak_bytes
    print(f"peak memory of the export: {exported.peak_bytes / 1e9:.2f} GB of {limit / 1e9:.2f} GB")
    assert 4 * PARAMETERS < exported.peak_bytes < limit


def test_ngram_output_equals_transformers_greedy(by_ngram, module):
    assert len(by_ngram) == 40
    margins = []
    for answer in by_ngram:
        choices, margin = forced(module, answer)
        assert choices == answer.completion.tokens
        margins.append(margin)
    print(f"smallest margin of the best two logits: {min(margins):.2g}")
    assert min(margins) > NEAR_TIE
    tokens = sum(len(answer.completion.tokens) for answer in by_ngram)
    assert tokens > 0.9 * len(by_ngram) * MAX_TOKENS, "too many prompts end early"


def test_ngram_lookup_gains_on_text_that_repeats(by_ngram):
    stats = [answer.completion.stats for answer in by_ngram]
    accepted = sum(each.num_accepted_tokens for each in stats)
    assert 0 < accepted < sum(each.num_draft_tokens for each in stats)


def test_output_equals_generate(by_ngram, module):
    for answer in (by_ngram[i] for i in BY_GENERATE):
        ids = torch.tensor([answer.prompt])
        whole = module.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=MAX_TOKENS, do_sample=False
        )
        assert answer.completion.tokens == whole[0, len(answer.prompt) :].tolist()


def test_the_target_as_its_own_draft_is_always_accepted(exported, by_ngram):
    bundle = Bundle.open(exported.path, verify=False)
    manifest, entry = bundle.manifest, bundle.manifest.models.target
    shape = GraphShape(
        capacity=manifest.capacity,
        vocab_size=manifest.vocab_size,
        hidden_size=entry.hidden_size,
        summary_top=manifest.summary_top,
        kv_shapes=entry.kv_shapes,
        cache_dtype=entry.cache_dtype,
    )
    target, draft = (OrtEngine(bundle.path(entry.graph), shape) for _ in range(2))
    assert manifest.chat_template is not None
    codec = TextCodec(bundle.path(manifest.tokenizer), bundle.path(manifest.chat_template))
    own = answers(Session(manifest, target, draft, codec, "model"))
    for mine, other in zip(own, by_ngram, strict=True):
        assert mine.completion.tokens == other.completion.tokens
        stats = mine.completion.stats
        assert stats.num_draft_tokens > 0
        assert stats.num_accepted_tokens == stats.num_draft_tokens


def test_chats_are_rendered_as_transformers_does(exported, smollm2_gguf):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2_gguf.parent, gguf_file=smollm2_gguf.name)
    codec = TextCodec(exported.path / "tokenizer.json", exported.path / "chat.json")
    chat = [
        {"role": "user", "content": CHAT[0]},
        {"role": "assistant", "content": "Light bends in drops of rain."},
        {"role": "user", "content": "Für wen? 🌈"},
    ]
    for messages in (chat, chat[:1]):
        expected = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        assert codec.encode_chat(messages) == expected


def answers(session: Session) -> list[Answer]:
    """Generate for all 40 prompts."""
    chats = [[{"role": "user", "content": text}] for text in CHAT]
    done = [
        Answer(session.codec.encode_chat(chat), session.generate(chat, max_tokens=MAX_TOKENS))
        for chat in chats
    ]
    done += [
        Answer(session.codec.encode(text), session.generate(text, max_tokens=MAX_TOKENS))
        for text in TEXT
    ]
    return done


def forced(module: Any, answer: Answer) -> tuple[list[int], float]:
    """What the module says at each position of the output, and its smallest margin."""
    whole = torch.tensor([answer.prompt + answer.completion.tokens])
    with torch.no_grad():
        logits = module(input_ids=whole, use_cache=False).logits[0]
    top = logits[len(answer.prompt) - 1 : -1].topk(2)
    margin = float((top.values[:, 0] - top.values[:, 1]).min())
    return top.indices[:, 0].tolist(), margin
