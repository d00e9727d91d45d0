"""A draft that proposes frequent tokens only: its head computes their logits and no others.

With today's vocabularies the head is a large part of a small draft's weights, and each drafted token
reads all of it; yet most of a text consists of few tokens. The idea is that of FR-Spec (Zhao et al.,
2025, "FR-Spec: Accelerating Large-Vocabulary Language Models via Frequency-Ranked Speculative
Sampling"). Strict output is still the target's own: a trimmed draft never guesses the tokens that it
lacks.

frequency.py        which tokens are kept
trimmed_head.py     `trim`: a decoder graph whose head computes only those
trimmed_bundle.py   `trim_bundle`: a whole bundle with a trimmed draft
trimming.py         counts, trims, measures before and after, and writes
"""

from .frequency import most_frequent
from .trimmed_bundle import trim_bundle
from .trimmed_head import trim

__all__ = ["most_frequent", "trim", "trim_bundle"]
