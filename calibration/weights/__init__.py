"""Weight formats of a bundle's decoders for ONNX Runtime on a CPU.

formats.py     the formats, and what this CPU asks of them
quantise.py    numbers: a weight in, its quantised tensors out, by ONNX Runtime's own quantisers
rewrite.py     the products of a graph, replaced
graph_conversion.py   `convert`: a decoder graph to another format, one weight in memory at a time
converted_bundle.py   `convert_bundle`: a whole bundle, a format for each role
texts.py       calibration texts as tokens
fidelity.py    perplexity and agreement with the source, through the runtime
format_speed.py       tokens per second of the combinations, taking turns
request.py     what is asked, and when a format is refused
candidates.py  every format converted and measured
selection.py   all of it, and the fastest that is good enough written
weights_report.py     the result as text
"""

from ...runtime.bundle.manifest import WeightFormat
from .converted_bundle import convert_bundle
from .formats import WEIGHT_FORMATS
from .graph_conversion import convert

__all__ = ["WEIGHT_FORMATS", "WeightFormat", "convert", "convert_bundle"]
