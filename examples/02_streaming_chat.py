"""A conversation: answers as they come, what earlier turns cost, and a rewind.

The tiny pair has learnt single questions only; converse with a bundle of an instruct model.

Run:  python examples/02_streaming_chat.py models/tiny "Multiply 285 by 8." "Put 3 1 2 in order."
"""

import sys

import cospec

chat = cospec.Chat(cospec.load(sys.argv[1]))


def ask(question: str) -> None:
    """Print an answer piece by piece. Ctrl-C elsewhere: `turn.stream.cancel()` from any thread."""
    print(f"> {question}")
    turn = chat.send(question, max_tokens=64)
    for piece in turn:
        print(piece.text, end="", flush=True)
    stats = turn.stream.stats
    print(f"\n  [{stats.num_cached_tokens} of {stats.num_prompt_tokens} prompt tokens were cached]")


for question in sys.argv[2:]:
    ask(question)

# Take the last turn back and ask something else: the turns before it are not read again.
chat.rewind()
ask("Work out 21+35-67+57.")
