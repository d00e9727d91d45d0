"""Sampling: the same seed gives the same text, however many tokens are drafted.

Run:  python examples/03_sampling.py models/tiny
"""

import sys

import cospec

session = cospec.load(sys.argv[1])
prompt = [{"role": "user", "content": "Multiply 285 by 8."}]

texts = set()
for num_draft_tokens in (0, 2, 5):
    drawn = session.generate(
        prompt,
        max_tokens=48,
        num_draft_tokens=num_draft_tokens,
        sampling=cospec.SamplingParams(temperature=0.8, top_p=0.95, seed=7),
    )
    texts.add(drawn.text)
    print(f"{num_draft_tokens} drafted a round: {drawn.text.strip()}")
print(f"different texts: {len(texts)}")

# Up to a stop text, with the log-probability of each token and of the two most likely ones.
reported = session.generate(
    prompt, max_tokens=48, sampling=cospec.SamplingParams(stop=("Answer",), logprobs=2)
)
print(f"ended by: {reported.finish_reason}")
for token, report in zip(reported.tokens[:4], reported.logprobs, strict=False):
    print(f"{session.codec.decode([token])!r:10} {report.logprob:8.4f}  best: {report.top}")
