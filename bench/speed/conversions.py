"""What the converters of the other runtimes are told for each format of weights.

A name means the same everywhere, as far as a runtime has it: int4 has blocks of 32 and int4-128 blocks
of 128. What is called int8 differs: openvino-genai has a scale for each output channel, llama.cpp
blocks of 32, onnxruntime-genai blocks of 128.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Conversion:
    """How a runtime's own converter makes one format.

    Attributes:
        name: of the format in the names of folders.
        options: that the converter is given.
    """

    name: str
    options: tuple[str, ...]


_GENAI_INT8 = Conversion("int8-128", ("-p", "int8", "--extra_options", "block_size=128"))
"""In the blocks of our int8-weights: where it was tried, faster than the 32 that it takes by itself."""

GENAI = {
    "fp32": Conversion("fp32", ("-p", "fp32")),
    "int8": _GENAI_INT8,
    "int8-weights": _GENAI_INT8,
    "int4": Conversion("int4", ("-p", "int4")),
    "int4-128": Conversion("int4-128", ("-p", "int4", "--extra_options", "block_size=128")),
}
"""Its products compute in int8 (accuracy level 4) unless told otherwise, as ours do."""

OPENVINO = {
    "fp32": Conversion("fp32", ("--weight-format", "fp32")),
    "int8": Conversion("int8", ("--weight-format", "int8")),
    "int4": Conversion("int4-32", ("--weight-format", "int4", "--group-size", "32")),
    # Blocks of 128 are what its converter makes unless told otherwise.
    "int4-128": Conversion("int4", ("--weight-format", "int4")),
}

LLAMA = {"fp32": "F32", "int8": "Q8_0", "int4": "Q4_0"}
"""Types of ggml's."""
