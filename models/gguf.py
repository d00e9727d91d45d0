"""GGUF files: we read and check the header; transformers says what the tensors are.

transformers turns a GGUF file into a module of the usual class, with the weights dequantised. Its
conversion leaves out what it does not know, in silence; `check_header` and the audit of the loader
refuse the files for which that would give a model that computes something else.

GGUFReader of the package gguf is not used for the header. A vocabulary of 152,000 tokens takes it 35
times as long (15 s), and it trusts counts: a header of 100 bytes can keep it busy for hours.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import CheckpointError, MissingExtraError
from .hf import transformers_class

ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "gpt2")
"""`general.architecture` values whose conversion in transformers is known to be faithful."""

_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9
_MAX_ENTRIES, _MAX_STRING, _MAX_ITEMS = 1 << 16, 1 << 24, 1 << 24
_ROTATION_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


@dataclass(frozen=True)
class GgufTensor:
    """One tensor in the header: name, shape (fastest axis first), ggml type, offset in the data."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int

    @property
    def kind_name(self) -> str:
        """The ggml type's name, such as Q4_K."""
        from gguf import GGMLQuantizationType

        return str(GGMLQuantizationType(self.kind).name)

    @property
    def bytes(self) -> int:
        """Bytes of the data."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(self.kind)]
        return int(math.prod(self.shape) // block * block_bytes)


@dataclass(frozen=True)
class GgufHeader:
    """Everything before the tensor data.

    Attributes:
        metadata: key to value.
        tensors: in file order.
        data_start: where the tensor data begin, in bytes.
    """

    metadata: dict[str, Any]
    tensors: tuple[GgufTensor, ...]
    data_start: int

    @property
    def architecture(self) -> str:
        """The file's name for its family, or an empty string."""
        return str(self.metadata.get("general.architecture", ""))

    @property
    def parameters(self) -> int:
        """Number of weights in the file."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors)


def read_header(file: Path) -> GgufHeader:
    """Read and check the header of a GGUF file (about 0.1 s; tensor data are not read).

    Raises:
        CheckpointError: not GGUF, damaged, cut off, or one part of a split file.
    """
    try:
        with file.open("rb") as stream:
            header = _parse(stream)
    except (struct.error, UnicodeDecodeError, ValueError, KeyError, EOFError) as error:
        raise CheckpointError(
            f"{file} is not a valid GGUF file ({error}).", hint="Download or copy it again."
        ) from error
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read ({error}).") from error
    if header.metadata.get("split.count", 1) > 1:
        raise CheckpointError(
            f"{file} is one part of a split GGUF file.",
            hint="Merge the parts first: llama-gguf-split --merge FIRST_PART MERGED.gguf",
        )
    _check_length(file, header)
    return header


def check_header(file: Path, header: GgufHeader) -> None:
    """Refuse a file that the conversion would change.

    Raises:
        CheckpointError: the architecture is not supported, or the file rescales its rotary
            positions, which the conversion would drop.
    """
    if header.architecture not in ARCHITECTURES:
        raise CheckpointError(
            f"{file}: GGUF architecture '{header.architecture}' is not supported.",
            hint=f"Supported in GGUF: {', '.join(ARCHITECTURES)}. For other families, use the "
            "Hugging Face checkpoint.",
        )
    names = {tensor.name for tensor in header.tensors}
    rotation = next((name for name in _ROTATION_TENSORS if name in names), None)
    scaling = header.metadata.get(f"{header.architecture}.rope.scaling.type", "none")
    if rotation or scaling != "none":
        raise CheckpointError(
            f"{file} rescales its rotary positions ({rotation or scaling}), which the GGUF "
            "conversion of transformers drops: its results would be wrong.",
            hint="Use the Hugging Face checkpoint of this model.",
        )


def read_config(header: GgufHeader) -> Any:
    """Return the transformers configuration of a file, by transformers' own table of names.

    AutoConfig gives the same, and parses the header again with GGUFReader for it.
    """
    from transformers import modeling_gguf_pytorch_utils as conversion

    names = conversion.GGUF_TO_TRANSFORMERS_MAPPING["config"]
    config = dict(conversion.GGUF_CONFIG_DEFAULTS_MAPPING.get(header.architecture) or {})
    config["tie_word_embeddings"] = all(t.name != "output.weight" for t in header.tensors)
    config["vocab_size"] = len(header.metadata.get("tokenizer.ggml.tokens", ()))
    for key, value in header.metadata.items():
        prefix, _, rest = key.partition(".")
        name = names.get(prefix, {}).get(rest)
        if name not in (None, -1):
            config[name] = value[0] if isinstance(value, list) and len(value) == 1 else value
    if config["model_type"] == "gemma3":  # a GGUF file holds the text part only
        config["model_type"] = "gemma3_text"
    return transformers_class("AutoConfig").for_model(**config)


def check_config(file: Path, header: GgufHeader, config: Any) -> None:
    """Check what the conversion may lose: the sliding window and the size of a head.

    Raises:
        CheckpointError: the converted configuration differs from the file.
    """
    prefix = header.architecture
    heads = config.num_attention_heads
    converted = {
        "attention.sliding_window": getattr(config, "sliding_window", None),
        "attention.key_length": getattr(config, "head_dim", None) or config.hidden_size // heads,
    }
    for key, value in converted.items():
        stored = header.metadata.get(f"{prefix}.{key}")
        if stored and stored != value:
            raise CheckpointError(
                f"{file}: {prefix}.{key} is {stored}, but transformers converts it to {value}.",
                hint="Use the Hugging Face checkpoint of this model.",
            )


def tensor_names(header: GgufHeader, module: Any) -> tuple[dict[str, str], Any]:
    """Return transformers' names of the file's tensors, and its processor that arranges their rows."""
    from transformers import modeling_gguf_pytorch_utils as conversion

    kind = conversion.TENSOR_PROCESSORS.get(header.architecture, conversion.TensorProcessor)
    processor = kind(config=module.config.to_dict())
    return conversion.get_gguf_hf_weights_map(module, processor), processor


def _check_length(file: Path, header: GgufHeader) -> None:
    try:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    except ImportError as error:
        raise MissingExtraError("gguf", "export", "Reading a GGUF checkpoint") from error
    size = file.stat().st_size
    for tensor in header.tensors:
        try:
            block, _ = GGML_QUANT_SIZES[GGMLQuantizationType(tensor.kind)]
        except (ValueError, KeyError) as error:
            raise CheckpointError(
                f"{file}: {tensor.name} has the unknown ggml type {tensor.kind}.",
                hint='pip install --upgrade "gguf"',
            ) from error
        if tensor.shape[:1] and tensor.shape[0] % block:
            raise CheckpointError(
                f"{file}: {tensor.name} has rows of {tensor.shape[0]} weights; {tensor.kind_name} "
                f"stores them in blocks of {block}.",
                hint="The file is damaged, or was made by a broken tool: download it again.",
            )
        if header.data_start + tensor.offset + tensor.bytes > size:
            raise CheckpointError(
                f"{file} is cut off: {tensor.name} ends beyond its {size} bytes.",
                hint="Download or copy it again.",
            )


def _parse(stream: BinaryIO) -> GgufHeader:
    if stream.read(4) != b"GGUF":
        raise ValueError("it does not begin with 'GGUF'")
    version, tensor_count, entry_count = _unpack(stream, "IQQ")
    if version not in (2, 3):
        raise ValueError(f"version {version}; 2 and 3 are known")
    if max(tensor_count, entry_count) > _MAX_ENTRIES:
        raise ValueError("implausible number of entries")
    metadata = {}
    for _ in range(entry_count):
        key = _string(stream)
        metadata[key] = _value(stream, _unpack(stream, "I")[0])
    tensors = tuple(_tensor(stream) for _ in range(tensor_count))
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment <= 1 << 16:
        raise ValueError("implausible alignment")
    return GgufHeader(metadata, tensors, -(-stream.tell() // alignment) * alignment)


def _tensor(stream: BinaryIO) -> GgufTensor:
    name = _string(stream)
    (dimensions,) = _unpack(stream, "I")
    if dimensions > 8:
        raise ValueError(f"{name} has {dimensions} dimensions")
    shape = _unpack(stream, f"{dimensions}Q")
    kind, offset = _unpack(stream, "IQ")
    return GgufTensor(name, shape, kind, offset)


def _value(stream: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _string(stream)
    if kind != _ARRAY:
        return _unpack(stream, _SCALARS[kind])[0]
    item, count = _unpack(stream, "IQ")
    if count > _MAX_ITEMS:
        raise ValueError("implausible array")
    if item == _STRING:
        return [_string(stream) for _ in range(count)]
    return list(_unpack(stream, f"{count}{_SCALARS[item]}"))


def _string(stream: BinaryIO) -> str:
    (length,) = _unpack(stream, "Q")
    if length > _MAX_STRING:
        raise ValueError("implausible string")
    return _exactly(stream, length).decode("utf-8", errors="replace")


def _unpack(stream: BinaryIO, layout: str) -> tuple[Any, ...]:
    return struct.unpack("<" + layout, _exactly(stream, struct.calcsize("<" + layout)))


def _exactly(stream: BinaryIO, length: int) -> bytes:
    data = stream.read(length)
    if len(data) != length:
        raise EOFError("it ends inside its header")
    return data
