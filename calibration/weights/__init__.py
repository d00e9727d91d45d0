"""The weight format of each role: exported one at a time, measured, and the fastest pair kept.

request.py     what is asked, which formats a checkpoint can take, and when one is refused
work_folder.py what an unfinished job has made so far
candidates.py  formats exported, read with, answered with and timed
texts.py       texts as tokens
fidelity.py    perplexity and choices of a decoder, through the runtime
format_speed.py       tokens per second of the combinations, taking turns
selection.py   all of it, and the fastest that is good enough written
weights_report.py     the result as text
"""
