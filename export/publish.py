"""A bundle on the Hugging Face hub: its model card, and the push.

The card is made of what the manifest and the certificate say, and adds nothing.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ..errors import CospecError, MissingExtraError, ResourceError, UsageError
from ..models.checkpoint import Checkpoint
from ..models.gguf import read_header
from ..models.source import HUB_ID
from ..runtime.bundle.certificate import measured_speed, read_certificate
from ..runtime.bundle.files import format_bytes
from ..runtime.bundle.hub import PREFIX, hub_reason, refusal
from ..runtime.bundle.manifest import MANIFEST_NAME, ModelEntry
from ..runtime.bundle.reader import Bundle

CARD = "README.md"
_MAX_HEAD = 1 << 16
_LICENCE_ID = re.compile(r"[\w.+-]{1,64}")


def provenance_of(checkpoint: Checkpoint) -> dict[str, str | None]:
    """Return where a model comes from, for the certificate: hub id and licence, None if not known."""
    source = checkpoint.source
    hub_id = source.location if source.kind == "hub" else None
    licence = source.licence or _stated_licence(checkpoint)
    return {"source": source.label, "hub_id": hub_id, "licence": licence}


def _stated_licence(checkpoint: Checkpoint) -> str | None:
    """Return the licence that a GGUF file's header or a folder's model card names."""
    if checkpoint.gguf_file:
        named = read_header(checkpoint.path).metadata.get("general.license")
        return named if isinstance(named, str) and _LICENCE_ID.fullmatch(named) else None
    try:
        with (checkpoint.folder / CARD).open(encoding="utf-8") as stream:
            head = stream.read(_MAX_HEAD)
    except (OSError, UnicodeDecodeError):
        return None
    header = re.match(r"---\n(.*?)\n---", head, re.DOTALL)
    licence = header and re.search(r"^license: *['\"]?([\w.+-]{1,64})['\"]? *$", header[1], re.M)
    return licence[1] if licence else None


def check_repository(name: str) -> None:
    """Refuse a name that cannot be one of a repository.

    Raises:
        UsageError: it is not of the form org/name.
    """
    if not HUB_ID.fullmatch(name):
        raise UsageError(f"--push {name!a} is no repository", hint="the form is org/name")


def push_bundle(root: Path, repository: str) -> str:
    """Upload a bundle and its model card in one commit, and return the address of that commit.

    A repository that does not exist is created as a private one. Files that it holds beside the
    bundle's stay; nothing reads them.

    Args:
        root: the bundle's folder. Its hashes are checked first.
        repository: org/name.

    Raises:
        BundleError: the bundle is damaged.
        ResourceError: the hub cannot be reached, or refuses.
        MissingExtraError: huggingface_hub is not installed.
    """
    check_repository(repository)
    bundle = Bundle.open(root)
    try:
        from huggingface_hub import CommitOperationAdd, HfApi
    except ImportError as error:
        raise MissingExtraError("huggingface_hub", "hub", "--push") from error
    names = [MANIFEST_NAME, *(entry.path for entry in bundle.manifest.files)]
    files = [CommitOperationAdd(name, str(bundle.root / name)) for name in names]
    card = CommitOperationAdd(CARD, model_card(bundle, repository).encode())
    message = f"Bundle {bundle.manifest.name}, seal {bundle.manifest.seal[:16]}"
    try:
        api = HfApi()
        api.create_repo(repository, private=True, exist_ok=True)
        commit = api.create_commit(repository, [*files, card], commit_message=message)
    except Exception as error:
        raise _not_pushed(root, repository, error) from error
    return str(commit.commit_url)


def _not_pushed(root: Path, repository: str, error: Exception) -> CospecError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    reason = hub_reason(error)
    if status is not None and not refusal(error):
        reason = f"the hub refused with status {status}"
    hint = (
        f"the bundle is in {root}. Push it again: cospec-export --push {repository} --output {root}"
    )
    if status in (401, 403):
        hint = "log in with `hf auth login` and a token that may write, or set HF_TOKEN; " + hint
    return ResourceError(f"{repository}: cannot be pushed: {reason}", hint=hint)


def model_card(bundle: Bundle, repository: str) -> str:
    """Return the model card of a bundle, for a repository of the hub."""
    manifest = bundle.manifest
    facts = read_certificate(bundle.root, manifest)
    target, draft = manifest.models.target, manifest.models.draft
    pair = target.source + (f" with the draft {draft.source}" if draft else "")
    size = format_bytes(sum(entry.size for entry in manifest.files))
    sections = [
        _header(facts.get("provenance")),
        f"# {_cell(manifest.name)}",
        f"A [CoSpec](https://arxiv.org/abs/2605.24793) bundle for speculative decoding on one device: "
        f"{_cell(pair)}. {size}, {manifest.precision}, a context of {manifest.capacity} tokens.",
        f"""```\npip install "cospec[cpu]"
cospec-run --engine-dir {PREFIX}{repository} "your prompt"\n```""",
        f"The seal of these files is `{manifest.seal}`; `cospec-inspect` shows it.",
        "## Models\n\n" + _models(bundle, facts.get("provenance")),
        "## Compared with the checkpoints\n\n" + _parity(facts.get("parity")),
        "## Accuracy\n\n" + _accuracy(facts.get("quality")),
        "## Speed\n\n" + _speed(facts, repository),
    ]
    return "\n\n".join(sections) + "\n"


def _header(provenance: Any) -> str:
    """Return the card's YAML header, written as JSON values, which are YAML too."""
    parents = list(_objects(provenance).values())
    licences = {str(each.get("licence") or "") for each in parents} or {""}
    named = licences.pop() if len(licences) == 1 else ""
    values: dict[str, Any] = {
        "library_name": "cospec",
        "pipeline_tag": "text-generation",
        "tags": ["cospec", "onnx", "speculative-decoding"],
        "license": named.lower() if re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9.-]*", named) else "other",
    }
    if parents_on_hub := [each["hub_id"] for each in parents if each.get("hub_id")]:
        values["base_model"] = parents_on_hub
    lines = [f"{key}: {json.dumps(value)}" for key, value in values.items()]
    return "\n".join(["---", *lines, "---"])


def _models(bundle: Bundle, provenance: Any) -> str:
    models = bundle.manifest.models
    entries = {"target": models.target, "draft": models.draft}
    rows = [["role", "source", "architecture", "parameters", "weights", "licence"]]
    for role, entry in entries.items():
        if entry is not None:
            licence = _objects(provenance).get(role, {}).get("licence") or "not stated by its files"
            weights = _weights(entry, bundle.manifest.precision)
            source = [role, entry.source, entry.architecture, f"{entry.parameters:,}"]
            rows.append([*source, weights, str(licence)])
    if models.arbiter is not None:
        threshold = f"threshold {models.arbiter.threshold:g}"
        rows.append(["arbiter", "trained for this pair", threshold, "", "", ""])
    return _table(rows)


def _weights(entry: ModelEntry, precision: str) -> str:
    kept = ", ".join(f"{each.kind} as its author stored it" for each in entry.kept_weights)
    return kept or precision


def _parity(parity: Any) -> str:
    rows = [["model", "rows", "largest relative error", "different choices"]]
    for role, each in _objects(parity).items():
        error = each.get("max_relative_error")
        shown = f"{error:.1e}" if isinstance(error, float) else "not recorded"
        rows.append([role, str(each.get("rows")), shown, str(each.get("argmax_differences"))])
    return _table(rows) if len(rows) > 1 else "The certificate holds no figures."


def _accuracy(quality: Any) -> str:
    rows = [["mode", "right", "items"]]
    for mode, each in _objects(quality.get("modes") if isinstance(quality, dict) else None).items():
        if isinstance(each.get("accuracy"), float):
            rows.append([mode, f"{each['accuracy']:.1%}", str(each.get("n"))])
    return _table(rows) if len(rows) > 1 else "Not measured."


def _speed(facts: dict[str, Any], repository: str) -> str:
    speed = measured_speed(facts)
    if not speed:
        command = f"cospec-bench speed --engine-dir {PREFIX}{repository}"
        return f"Not measured. On your machine: `{command}`"
    rows = [["mode", "tokens per second", "against the target alone"]]
    plain = speed.get("target")
    for mode, rate in speed.items():
        rows.append([mode, f"{rate:.1f}", f"{rate / plain:.2f}" if plain else ""])
    return "On the machine that made the bundle:\n\n" + _table(rows)


def _objects(value: Any) -> dict[str, dict[str, Any]]:
    """Return the entries of a section that are objects themselves."""
    found = value if isinstance(value, dict) else {}
    return {key: each for key, each in found.items() if isinstance(each, dict)}


def _table(rows: list[list[str]]) -> str:
    first, *others = [f"| {' | '.join(map(_cell, row))} |" for row in rows]
    return "\n".join([first, "|" + "---|" * len(rows[0]), *others])


def _cell(text: str) -> str:
    """Return a text that Markdown shows as it is."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))
