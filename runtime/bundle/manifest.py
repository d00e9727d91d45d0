"""The manifest of a bundle, `cospec.json`: its schema, how it is read and how it is sealed.

The schema is the dataclasses below. A value is checked against its annotation whenever one of them
is made, from JSON or from Python, so that no manifest with an unknown key, a wrong type or a value
out of range ever exists.

The seal is the SHA-256 of the canonical JSON of everything but itself, and the file must be that
canonical JSON byte for byte. Together with the hash of every file in `files` it protects against
accidents (a bad copy, a truncated download, an edit by hand), and it is one short fingerprint of
the whole bundle that two people can compare. It is not a signature: whoever can change the files
on purpose can also compute a new seal.
"""

from __future__ import annotations

import hashlib
import json
import re
from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from ...errors import BundleError
from .files import is_portable_path, parse_json_object
from .schema import Checked, Within, convert, refuse

MANIFEST_NAME = "cospec.json"
ENGINES_FOLDER = "engines"  # derived files: in no manifest, and never read by the bundle reader
LOCK_NAME = ".cospec-lock"
SCHEMA_VERSION = 1

MAX_MANIFEST_BYTES = 1 << 20
MAX_DEPTH = 16
MAX_FILES = 10_000

EXPORT_OR_COPY_AGAIN = (
    "Copy the bundle again from where it came from, or export it again with cospec-export."
)


def _portable_path(value: str, where: str) -> None:
    if not is_portable_path(value):
        refuse(
            where,
            f"{value!a} is not a path inside the bundle (relative, parts joined by '/', "
            "each made of A-Z a-z 0-9 . _ - and not starting or ending with a dot)",
        )


def _hex_sha256(value: str, where: str) -> None:
    if not re.fullmatch("[0-9a-f]{64}", value):
        refuse(where, "expected a SHA-256 of 64 lower-case hexadecimal digits")


Name = Annotated[str, Within(1, 256)]
Text = Annotated[str, Within(1, 4096)]
RelativePath = Annotated[str, _portable_path]
Sha256 = Annotated[str, _hex_sha256]
Size = Annotated[int, Within(1, 1 << 24)]
Large = Annotated[int, Within(0, 1 << 50)]
TokenId = Annotated[int, Within(0, (1 << 24) - 1)]
WeightFormat = Literal["fp32", "fp16", "int8", "int8-rows", "int8-weights", "int4", "int4-128"]


@dataclass(frozen=True)
class FileEntry(Checked):
    """One file of the bundle: where it is, its bytes, its hash."""

    path: RelativePath
    size: Large
    sha256: Sha256


@dataclass(frozen=True, kw_only=True)
class ModelEntry(Checked):
    """One decoder. `kv_shapes` holds (KV heads, head size) for each layer.

    `weights` is the format that the weights were converted to after the export (see
    `calibration.weights`); None stands for the precision that the bundle was exported in.
    `kept_tokens` is how many tokens a draft can propose (see `calibration.draft_vocabulary`); None
    stands for all of them.
    """

    graph: RelativePath
    source: Text
    architecture: Name
    parameters: Large
    hidden_size: Size
    kv_shapes: Annotated[tuple[tuple[Size, Size], ...], Within(1, 4096)]
    cache_dtype: Literal["float32", "float16"]
    weights: WeightFormat | None = None
    kept_tokens: Size | None = None

    def cache_bytes(self, capacity: int) -> int:
        """Bytes that the KV cache takes for `capacity` tokens: keys and values of all layers."""
        item = {"float32": 4, "float16": 2}[self.cache_dtype]
        return 2 * item * capacity * sum(heads * size for heads, size in self.kv_shapes)


@dataclass(frozen=True, kw_only=True)
class ArbiterEntry(Checked):
    """The arbiter: its graph, and the score above which a draft token stays by default."""

    graph: RelativePath
    threshold: Annotated[float, Within(0, 1)]


@dataclass(frozen=True, kw_only=True)
class EnginesEntry(Checked):
    """What the bundle was exported for: TensorRT engines that are built where they will run.

    `sm` is the compute capability (87 for 8.7); None stands for the machine that builds.
    """

    device: Name
    flavour: Literal["tensorrt", "rtx"]
    trt_version: Name
    sm: Annotated[int, Within(50, 200)] | None = None


@dataclass(frozen=True)
class Models(Checked):
    """The models by role. Without a draft model n-grams are looked up; an arbiter needs a draft."""

    target: ModelEntry
    draft: ModelEntry | None = None
    arbiter: ArbiterEntry | None = None


@dataclass(frozen=True, kw_only=True)
class GenerationDefaults(Checked):
    """What a session does unless it is told otherwise; all counts are tokens."""

    bos_token_id: TokenId | None
    eos_token_ids: Annotated[tuple[TokenId, ...], Within(0, 1024)]
    num_draft_tokens: Annotated[int, Within(0, 256)]
    max_tokens: Size
    prefill_chunk: Size


@dataclass(frozen=True, kw_only=True)
class Manifest(Checked):
    """All that the runtime has to know about a bundle before it opens another file of it.

    `capacity` is the KV cache's length in tokens, `vocab_size` the width of both models' logits,
    `summary_top` the k of the graphs' `top_values` and `top_ids`. `files` may be empty only
    while the bundle is being written.
    """

    schema_version: Annotated[int, Within(1, SCHEMA_VERSION)] = SCHEMA_VERSION
    name: Name
    created_by: Annotated[dict[Name, Name], Within(1, 100)]
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
    files: Annotated[tuple[FileEntry, ...], Within(0, MAX_FILES)] = ()

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
            refuse("generation", f"a token id of {ids} is not below vocab_size {self.vocab_size}")
        Within(1, self.vocab_size)(self.summary_top, "summary_top")
        models = self.models
        if models.target.kept_tokens is not None:
            refuse("models.target.kept_tokens", "only a draft may lack tokens")
        if models.draft is not None and models.draft.kept_tokens is not None:
            within = Within(self.summary_top, self.vocab_size)
            within(models.draft.kept_tokens, "models.draft.kept_tokens")
        for field in ("num_draft_tokens", "max_tokens", "prefill_chunk"):
            Within(0, self.capacity)(getattr(chosen, field), f"generation.{field}")

    def _check_files(self) -> None:
        seen: set[str] = set()
        for entry in self.files:
            path = entry.path.lower()  # some file systems do not tell the case apart
            if path == MANIFEST_NAME or path.split("/")[0] == ENGINES_FOLDER:
                refuse("files", f"'{entry.path}' can never be one of a bundle's files")
            if path in seen:
                refuse("files", f"'{entry.path}' is listed twice")
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
        BundleError: whatever is wrong with them, and what to do about it.
    """
    try:
        raw = parse_json_object(data, max_bytes=MAX_MANIFEST_BYTES, max_depth=MAX_DEPTH)
        _check_version(raw)
        seal = raw.pop("seal", None)
        if seal != hashlib.sha256(_canonical(raw)).hexdigest():
            raise BundleError("its seal does not match: it was changed after it was written")
        if _canonical({**raw, "seal": seal}) != data:
            raise BundleError("its layout was changed after it was written")
        manifest: Manifest = convert(Manifest, _with_later_keys(raw), "")
        _check_complete(manifest)
    except BundleError as error:
        hint = error.hint or EXPORT_OR_COPY_AGAIN
        raise BundleError(f"{MANIFEST_NAME}: {error.message}", hint=hint) from None
    return manifest


def _check_complete(manifest: Manifest) -> None:
    listed = {entry.path for entry in manifest.files}
    for field, path in manifest.named_files().items():
        if path not in listed:
            refuse(field, f"'{path}' is not among the bundle's files")


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


_LATER_MODEL_KEYS = ("weights", "kept_tokens")


def _as_object(manifest: Manifest) -> dict[str, Any]:
    """Return the manifest as JSON has it: a key that came later than version 1 only where it is used.

    So a bundle without engines keeps the seal that it was written with.
    """
    value = asdict(manifest)
    if manifest.engines is None:
        del value["engines"]
    for model in _decoders_of(value):
        for key in _LATER_MODEL_KEYS:
            if model[key] is None:
                del model[key]
    return value


def _with_later_keys(raw: dict[str, Any]) -> dict[str, Any]:
    """Return what was read with the keys that came later than version 1."""
    value = {"engines": None, **deepcopy(raw)}
    for model in _decoders_of(value):
        for key in _LATER_MODEL_KEYS:
            model.setdefault(key, None)
    return value


def _decoders_of(value: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the entries of draft and target, of those that are objects at all."""
    models = value.get("models")
    roles = [models.get(role) for role in ("target", "draft")] if isinstance(models, dict) else []
    return [entry for entry in roles if isinstance(entry, dict)]


def _canonical(value: dict[str, Any]) -> bytes:
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=True) + "\n"
    return text.encode("ascii")
