"""The manifest of a bundle, `cospec.json`: its schema, how it is read and how it is sealed.

The schema is the structs below. Each checks its fields whenever it is made, from JSON or from Python,
so that no manifest with an unknown key, a wrong type or a value out of range ever exists.

The seal is the SHA-256 of the canonical JSON of everything but itself, and the file must be that
canonical JSON byte for byte. Together with the hash of every file in `files` it protects against
accidents (a bad copy, a truncated download, an edit by hand), and it is one short fingerprint of
the whole bundle that two people can compare. It is not a signature: somebody who changes the files
on purpose can also compute a new seal.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal, NoReturn

import msgspec
from msgspec import Meta

from ...errors import BundleError
from .json_input import Checked, convert, matching, parse_json_object

MANIFEST_NAME = "cospec.json"
ENGINES_FOLDER = "engines"  # derived files: in no manifest, and never read by the bundle reader
LOCK_NAME = ".cospec-lock"
SCHEMA_VERSION = 1

MAX_MANIFEST_BYTES = 1 << 20
MAX_FILES = 10_000
MAX_UNSHARED = 256

EXPORT_OR_COPY_AGAIN = (
    "Copy the bundle again from where it came from, or export it again with cospec-export."
)

# Control characters, half surrogates, and what reorders or hides the text around it.
_PRINTABLE = matching(
    r"^[^\x00-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff]*\Z",
    "characters that can be printed",
)
_PATH_PART = "[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_-])?"
_PORTABLE_PATH = matching(
    rf"^{_PATH_PART}(?:/{_PATH_PART})*\Z",
    "a path inside the bundle (relative, parts joined by '/', each made of A-Z a-z 0-9 . _ - and not "
    "starting or ending with a dot)",
    max_length=240,
)
_GRAPH_PATH = matching(
    rf"^{_PATH_PART}(?:/{_PATH_PART})*(?<=[.]onnx)\Z",
    "a path inside the bundle that ends with .onnx",
    max_length=240,
)
_SHA256 = matching(r"^[0-9a-f]{64}\Z", "a SHA-256 of 64 lower-case hexadecimal digits")

Name = Annotated[str, _PRINTABLE, Meta(min_length=1, max_length=256)]
Text = Annotated[str, _PRINTABLE, Meta(min_length=1, max_length=4096)]
RelativePath = Annotated[str, _PORTABLE_PATH]
"""A relative POSIX path that names the same file on every system: not absolute, no drive, no '..', no
backslash, no control character and nothing that Unicode normalisation could change."""
GraphPath = Annotated[str, _GRAPH_PATH]
"""The name decides how ONNX Runtime reads a file: others would not be read as ONNX."""
Sha256 = Annotated[str, _SHA256]
Size = Annotated[int, Meta(ge=1, le=1 << 24)]
Large = Annotated[int, Meta(ge=0, le=1 << 50)]
TokenId = Annotated[int, Meta(ge=0, lt=1 << 24)]
PassSeconds = Annotated[float, Meta(ge=1e-6, le=3600)]


class FileEntry(Checked, frozen=True):
    """One file of the bundle: where it is, its bytes, its hash."""

    path: RelativePath
    size: Large
    sha256: Sha256


class KeptWeights(Checked, frozen=True, kw_only=True):
    """Weights that are stored as integers: those of a quantised checkpoint, or quantised at export.

    `kind` is the name of the format, such as Q4_K or int8. `max_error` is the largest difference from
    the checkpoint's own numbers, as a share of a matrix's largest weight; 0 is bit for bit.
    """

    kind: Name
    tensors: Size
    weights: Large
    bits_per_weight: Annotated[float, Meta(gt=0, le=64)]
    max_error: Annotated[float, Meta(ge=0)] = 0.0


class ModelEntry(Checked, frozen=True, kw_only=True, omit_defaults=True):
    """One decoder. `kv_shapes` holds (KV heads, head size) for each layer.

    `kept_weights` are those that are stored as integers, by kind.
    `pass_seconds` are the times of passes of 1, 2, ... tokens on the CPU that exported the graph; empty
    where they were not measured. The draft-length controller starts from them.
    `kept_tokens` is how many tokens a draft can propose (see `calibration.draft_vocabulary`); None
    stands for all of them. `unshared` names the ids that a draft never proposes because they are not
    the same token in both vocabularies, each with the reason.
    """

    graph: GraphPath
    source: Text
    architecture: Name
    parameters: Large
    hidden_size: Size
    kv_shapes: Annotated[tuple[tuple[Size, Size], ...], Meta(min_length=1, max_length=4096)]
    cache_dtype: Literal["float32", "float16"]
    kept_weights: Annotated[tuple[KeptWeights, ...], Meta(max_length=64)] = ()
    kept_tokens: Size | None = None
    pass_seconds: Annotated[tuple[PassSeconds, ...], Meta(max_length=64)] = ()
    unshared: Annotated[tuple[Text, ...], Meta(max_length=MAX_UNSHARED)] = ()

    @property
    def rounds_by_width(self) -> bool:
        """Whether its products may round differently in passes of different widths on a CPU."""
        return bool(self.kept_weights)

    def cache_bytes(self, capacity: int) -> int:
        """Bytes that the KV cache takes for `capacity` tokens: keys and values of all layers."""
        item = {"float32": 4, "float16": 2}[self.cache_dtype]
        return 2 * item * capacity * sum(heads * size for heads, size in self.kv_shapes)


class ArbiterEntry(Checked, frozen=True, kw_only=True):
    """The arbiter: its graph, and the score above which a draft token is kept by default."""

    graph: GraphPath
    threshold: Annotated[float, Meta(ge=0, le=1)]


class EnginesEntry(Checked, frozen=True, kw_only=True):
    """The device of a bundle for TensorRT, whose engines are built where they run.

    `sm` is the compute capability (87 for 8.7); None is that of the machine that builds.
    """

    device: Name
    flavour: Literal["tensorrt", "rtx"]
    trt_version: Name
    sm: Annotated[int, Meta(ge=50, le=200)] | None = None


class Models(Checked, frozen=True):
    """The models by role. Without a draft model n-grams are looked up; an arbiter needs a draft."""

    target: ModelEntry
    draft: ModelEntry | None = None
    arbiter: ArbiterEntry | None = None


class SamplingDefaults(Checked, frozen=True, kw_only=True, omit_defaults=True):
    """The sampling parameters that the checkpoint's author chose; see `SamplingParams`."""

    temperature: Annotated[float, Meta(ge=0, le=100)] = 0.0
    top_k: Annotated[int, Meta(ge=0, le=1 << 24)] = 0
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    min_p: Annotated[float, Meta(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, Meta(gt=0, le=100)] = 1.0


class GenerationDefaults(Checked, frozen=True, kw_only=True, omit_defaults=True):
    """Defaults of a session; all counts are tokens.

    `eos_token_sources` says of each of `eos_token_ids` how it is spelled and which files name it; it is
    empty in bundles of older versions. `sampling` is None where the author's default is greedy.
    """

    bos_token_id: TokenId | None
    eos_token_ids: Annotated[tuple[TokenId, ...], Meta(max_length=1024)]
    eos_token_sources: Annotated[tuple[Text, ...], Meta(max_length=1024)] = ()
    num_draft_tokens: Annotated[int, Meta(ge=0, le=256)]
    max_tokens: Size
    prefill_chunk: Size
    sampling: SamplingDefaults | None = None


class Manifest(Checked, frozen=True, kw_only=True):
    """The facts about a bundle that the runtime needs before it opens another file of it.

    `capacity` is the KV cache's length in tokens, `vocab_size` the width of both models' logits,
    `summary_top` the k of the graphs' `top_values` and `top_ids`. `files` may be empty only
    while the bundle is being written.
    """

    schema_version: Annotated[int, Meta(ge=1, le=SCHEMA_VERSION)] = SCHEMA_VERSION
    name: Name
    created_by: Annotated[dict[Name, Name], Meta(min_length=1, max_length=100)]
    lowering: Literal["gqa", "scatter", "portable"]
    precision: Literal["fp32", "fp16"]
    capacity: Size
    vocab_size: Size
    summary_top: Size
    models: Models
    generation: GenerationDefaults
    tokenizer: RelativePath
    chat_template: RelativePath | None = None
    certificate: RelativePath | None = None
    engines: EnginesEntry | None = None
    files: Annotated[tuple[FileEntry, ...], Meta(max_length=MAX_FILES)] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_ranges()
        self._check_files()

    @property
    def seal(self) -> str:
        """The fingerprint of the bundle: SHA-256 over the canonical JSON of this manifest."""
        return hashlib.sha256(_canonical(_as_object(self))).hexdigest()

    def named_files(self) -> dict[str, str]:
        """Return the files that the manifest refers to by role: field -> path."""
        named = {
            "models.target.graph": self.models.target.graph,
            "models.draft.graph": self.models.draft.graph if self.models.draft else None,
            "models.arbiter.graph": self.models.arbiter.graph if self.models.arbiter else None,
            "tokenizer": self.tokenizer,
            "chat_template": self.chat_template,
            "certificate": self.certificate,
        }
        return {field: path for field, path in named.items() if path is not None}

    def _check_ranges(self) -> None:
        chosen = self.generation
        ids = [
            *chosen.eos_token_ids,
            *([] if chosen.bos_token_id is None else [chosen.bos_token_id]),
        ]
        if any(token >= self.vocab_size for token in ids):
            _refuse("generation", f"a token id of {ids} is not below vocab_size {self.vocab_size}")
        if len(chosen.eos_token_sources) not in (0, len(chosen.eos_token_ids)):
            _refuse("generation.eos_token_sources", "expected one for each of eos_token_ids")
        _check_range("summary_top", self.summary_top, 1, self.vocab_size)
        models = self.models
        if models.target.unshared:
            _refuse("models.target.unshared", "every id is a token of the target")
        if models.target.kept_tokens is not None:
            _refuse("models.target.kept_tokens", "only a draft may lack tokens")
        if models.draft is not None and models.draft.kept_tokens is not None:
            kept = models.draft.kept_tokens
            _check_range("models.draft.kept_tokens", kept, self.summary_top, self.vocab_size)
        for field in ("num_draft_tokens", "max_tokens", "prefill_chunk"):
            _check_range(f"generation.{field}", getattr(chosen, field), 0, self.capacity)

    def _check_files(self) -> None:
        seen: set[str] = set()
        for entry in self.files:
            path = entry.path.lower()  # some file systems do not tell the case apart
            if path == MANIFEST_NAME or path.split("/")[0] == ENGINES_FOLDER:
                _refuse("files", f"'{entry.path}' can never be one of a bundle's files")
            if path in seen:
                _refuse("files", f"'{entry.path}' is listed twice")
            seen.add(path)


def to_json(manifest: Manifest) -> bytes:
    """Return the bytes of `cospec.json`, seal included.

    Raises:
        BundleError: a file that the manifest refers to is not in its `files`.
    """
    _check_complete(manifest)
    return _canonical({**_as_object(manifest), "seal": manifest.seal})


def from_json(data: bytes) -> Manifest:
    """Parse, verify and check the bytes of a `cospec.json`.

    Raises:
        BundleError: names the problem and what to do about it.
    """
    try:
        raw = parse_json_object(data, max_bytes=MAX_MANIFEST_BYTES)
        _check_version(raw)
        seal = raw.pop("seal", None)
        if seal != hashlib.sha256(_canonical(raw)).hexdigest():
            raise BundleError("its seal does not match: it was changed after it was written")
        manifest = convert(raw, Manifest, error=BundleError)
        if to_json(manifest) != data:
            raise BundleError("its layout was changed after it was written")
    except BundleError as error:
        hint = error.hint or EXPORT_OR_COPY_AGAIN
        raise BundleError(f"{MANIFEST_NAME}: {error.message}", hint=hint) from None
    return manifest


def _check_complete(manifest: Manifest) -> None:
    listed = {entry.path for entry in manifest.files}
    for field, path in manifest.named_files().items():
        if path not in listed:
            _refuse(field, f"'{path}' is not among the bundle's files")


def folder_bytes(manifest: Manifest, graph: str) -> int:
    """Return the bytes of a graph and of its external data, which share a folder."""
    folder = graph.rpartition("/")[0] + "/"
    return sum(entry.size for entry in manifest.files if entry.path.startswith(folder))


def _check_version(raw: dict[str, Any]) -> None:
    version = raw.get("schema_version")
    if type(version) is int and version > SCHEMA_VERSION:
        raise BundleError(
            f"schema version {version} was written by a newer cospec; "
            f"this one reads up to {SCHEMA_VERSION}",
            hint="pip install --upgrade cospec",
        )


def _as_object(manifest: Manifest) -> dict[str, Any]:
    """Return the manifest as JSON has it: keys that came after version 1 only where they are used.

    So a bundle without engines keeps the seal that it was written with.
    """
    value: dict[str, Any] = msgspec.to_builtins(manifest)
    if manifest.engines is None:
        del value["engines"]
    return value


def _canonical(value: dict[str, Any]) -> bytes:
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=True) + "\n"
    return text.encode("ascii")


def _check_range(where: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        _refuse(where, f"expected int from {low} to {high}, found {value}")


def _refuse(where: str, problem: str) -> NoReturn:
    raise BundleError(f"{where}: {problem}")
