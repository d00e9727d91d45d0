"""A draft that proposes frequent tokens only: its head computes their logits and no others.

With the vocabularies of today the head is much of a small draft's weights, and each drafted token
reads all of it; yet most of a text is made of few tokens. The idea is that of FR-Spec (Zhao et al.,
2025, "FR-Spec: Accelerating Large-Vocabulary Language Models via Frequency-Ranked Speculative
Sampling"). Strict output stays the target's own: a trimmed draft is a draft like any other, which
never guesses the tokens that it lacks.

frequency.py   which tokens stay
graph.py       `trim`: a decoder graph whose head computes those only
bundle.py      `trim_bundle`: a whole bundle with a trimmed draft
trial.py       acceptance, speed and the draft's step on held-out texts, before and after
choose.py      counting, trimming, measuring and writing
report.py      the result as text
"""

from .frequency import most_frequent
from .trimmed_bundle import trim_bundle
from .trimmed_head import trim

__all__ = ["most_frequent", "trim", "trim_bundle"]
