"""A drafter of your own: proposals from a list of phrases that your answers often contain.

A wrong proposal costs time, never correctness: the output is what the target alone would write.

Run:  python examples/06_custom_drafter.py models/tiny
"""

import sys
from collections.abc import Sequence

import cospec


class PhraseDrafter:
    """Proposes the rest of a phrase that the text has just begun.

    Args:
        phrases: as tokens.
    """

    def __init__(self, phrases: Sequence[Sequence[int]]) -> None:
        self._phrases = [list(phrase) for phrase in phrases]

    def propose(self, tokens: Sequence[int], count: int) -> list[int]:
        """Return at most `count` tokens, or none: an empty proposal is plain decoding."""
        for phrase in self._phrases:
            for begun in range(len(phrase) - 1, 0, -1):
                if list(tokens[-begun:]) == phrase[:begun]:
                    return phrase[begun : begun + count]
        return []


session = cospec.load(sys.argv[1], drafter="none")
question = "Mia has 58 keys and Sam 55 more than Mia. How many in all?"
prompt = [{"role": "user", "content": question}]
plain = session.generate(prompt, max_tokens=64)

# Phrases from a first answer; in an application, from a form letter, a schema, a glossary.
phrases = [plain.tokens[:8], plain.tokens[8:]]
helped = session.generate(prompt, max_tokens=64, drafter=PhraseDrafter(phrases))

print(helped.text.strip())
print(f"the same text: {helped.text == plain.text}")
print(f"target passes: {plain.stats.num_target_passes} alone")
print(f"target passes: {helped.stats.num_target_passes} with phrases")
