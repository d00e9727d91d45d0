"""A rule of your own that decides where draft and target disagree, and a page that explains it.

An arbiter names the outputs of the models that it reads, and scores each position of a drafted block. A
draft token is kept if its score is above the threshold. The caps against loops hold for any rule.

Run:  python examples/05_custom_arbiter_rule.py models/tiny trace.html
"""

import sys
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

import cospec


@dataclass
class SurerModel:
    """Keeps the draft's token if the draft is more confident of its choice than the target."""

    target_outputs: tuple[str, ...] = ("top_values", "logsumexp")
    draft_outputs: tuple[str, ...] = ("top_values", "logsumexp")

    def score(self, block: cospec.Block) -> NDArray[np.float32]:
        """Return [k], between 0 and 1: above one half if the draft is more confident."""
        sure = [np.exp(m.top_values[:, 0] - m.logsumexp) for m in (block.draft, block.target)]
        return np.asarray((1 + sure[0] - sure[1]) / 2, dtype=np.float32)


session = cospec.load(sys.argv[1])
prompt = [{"role": "user", "content": "What is 625 times 4?"}]
strict = session.generate(prompt, max_tokens=96)
trace = cospec.Trace(session)
ruled = session.generate(
    prompt, max_tokens=96, mode="collab", arbiter=SurerModel(), threshold=0.5, observer=trace
)
print(f"strict: {strict.text.strip()}")
print(f"ruled:  {ruled.text.strip()}")
stats = ruled.stats
print(f"kept {stats.num_overrides} draft tokens at {stats.num_mismatches} mismatches")
trace.write(sys.argv[2], ruled)
print(f"written: {sys.argv[2]}")
