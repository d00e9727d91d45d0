"""Load a bundle, generate, and see who chose each token.

Run:  cospec-export --target tiny
      python examples/01_minimal.py models/tiny
"""

import sys

import cospec

session = cospec.load(sys.argv[1])
question = "Mia has 58 keys and Sam 55 more than Mia. How many in all?"
completion = session.generate([{"role": "user", "content": question}], max_tokens=64)

print(completion.text.strip())
print(f"ended by: {completion.finish_reason}")
print(f"tokens a target pass: {completion.stats.tokens_per_target_pass:.2f}")
for who in ("agreed", "target", "bonus"):
    print(f"{who}: {completion.provenance.count(who)}")
