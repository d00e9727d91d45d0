"""cospec-inspect: what is in a bundle, without reading its models."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import msgspec

from ..bundle.files import format_bytes
from ..bundle.manifest import GenerationDefaults, Manifest, ModelEntry, folder_bytes
from ..bundle.reader import Bundle, find_bundle
from ..tensorrt.plan_store import PlanStore
from .common import BundleFolder, CospecCommand, json_option, print_json


@click.command(
    cls=CospecCommand,
    epilog="Example: cospec-inspect models/tiny --json",
)
@click.argument("directory", metavar="DIR", type=BundleFolder())
@json_option
def main(directory: Path, as_json: bool) -> None:
    """Show what the bundle DIR holds.

    DIR is a bundle, a folder with one bundle in it, or hf://org/name[@revision]. Checks the manifest
    and every file's size, but no hashes: cospec-verify does that.
    """
    bundle = Bundle.open(find_bundle(directory), verify=False)
    if as_json:
        print_json(_as_dict(bundle))
    else:
        click.echo("\n".join(_summary(bundle)))


def _models(manifest: Manifest) -> dict[str, ModelEntry]:
    by_role = {"target": manifest.models.target, "draft": manifest.models.draft}
    return {role: model for role, model in by_role.items() if model is not None}


def _as_dict(bundle: Bundle) -> dict[str, Any]:
    """Return the manifest, and what follows from it."""
    manifest = bundle.manifest
    return {
        "bundle": str(bundle.root),
        "seal": manifest.seal,
        "hashes_checked": False,
        "kv_cache_bytes": {
            role: model.cache_bytes(manifest.capacity) for role, model in _models(manifest).items()
        },
        "models": {role: _sizes(manifest, entry) for role, entry in _models(manifest).items()},
        "manifest": msgspec.to_builtins(manifest),
        "plans": [asdict(plan) for plan in PlanStore(bundle.root).stored(manifest)],
    }


def _summary(bundle: Bundle) -> list[str]:
    manifest, defaults = bundle.manifest, bundle.manifest.generation
    packages = ", ".join(f"{name} {version}" for name, version in manifest.created_by.items())
    total = format_bytes(sum(entry.size for entry in manifest.files))
    sampling = defaults.sampling and msgspec.to_builtins(defaults.sampling)
    chosen = ", ".join(f"{name} {value:g}" for name, value in (sampling or {}).items())
    return [
        f"{manifest.name}  ({bundle.root})",
        f"  lowering    {manifest.lowering}, {manifest.precision}",
        f"  capacity    {manifest.capacity} tokens",
        f"  vocabulary  {manifest.vocab_size} tokens; summary of the {manifest.summary_top} best",
        f"  defaults    {defaults.num_draft_tokens} draft tokens a round, at most "
        f"{defaults.max_tokens} new tokens, prefill in chunks of {defaults.prefill_chunk}",
        f"  sampling    {chosen or 'greedy'}",
        f"  begin       {'no token' if defaults.bos_token_id is None else defaults.bos_token_id}",
        *_end_lines(defaults),
        f"  created by  {packages}",
        f"  seal        {manifest.seal[:16]}",
        *(
            line
            for role, model in _models(manifest).items()
            for line in _model_lines(manifest, role, model)
        ),
        *_arbiter_lines(manifest),
        *_engine_lines(bundle),
        f"files, {total}; sizes agree, hashes not checked (cospec-verify does)",
        *(f"  {format_bytes(entry.size):>10}  {entry.path}" for entry in manifest.files),
    ]


def _end_lines(defaults: GenerationDefaults) -> list[str]:
    """Return the tokens that end an output, each with the places that name it."""
    ids = defaults.eos_token_ids
    sources = defaults.eos_token_sources or ("",) * len(ids)
    ends = [f"{index}  {source}".rstrip() for index, source in zip(ids, sources, strict=True)]
    first, *others = ends or ["no token"]
    return [f"  end         {first}", *(f"              {end}" for end in others)]


def _arbiter_lines(manifest: Manifest) -> list[str]:
    arbiter = manifest.models.arbiter
    if arbiter is None:
        return []
    return ["arbiter", f"  threshold   {arbiter.threshold:g} (cospec-run --mode collab)"]


def _engine_lines(bundle: Bundle) -> list[str]:
    entry = bundle.manifest.engines
    plans = PlanStore(bundle.root).stored(bundle.manifest)
    if entry is None and not plans:
        return []
    made_for = "no device in particular"
    if entry is not None:
        name = {"tensorrt": "TensorRT", "rtx": "TensorRT-RTX"}[entry.flavour]
        of = "" if entry.sm is None else f", SM {entry.sm}"
        made_for = f"{entry.device} ({name} {entry.trt_version}{of})"
    lines = [
        f"  {plan.folder}/{plan.role}  {format_bytes(plan.size)}"
        + ("" if plan.fits else ", of other graphs: never loaded")
        for plan in plans
    ]
    return ["engines", f"  exported for {made_for}", *(lines or ["  none built yet"])]


def _model_lines(manifest: Manifest, role: str, model: ModelEntry) -> list[str]:
    shapes = sorted(set(model.kv_shapes))
    heads = ", ".join(f"{count} KV heads of {size}" for count, size in shapes)
    sizes = _sizes(manifest, model)
    cache = format_bytes(sizes["kv_cache_bytes"])
    kept = []
    if model.kept_tokens is not None:
        kept = [f"  proposes    {model.kept_tokens} of the {manifest.vocab_size} tokens"]
    for i, token in enumerate(model.unshared):
        kept.append(f"  {'' if i else 'leaves out':<10}  {token}")
    return [
        f"{role}  {model.architecture} from {model.source}",
        f"  parameters  {model.parameters:,}; {format_bytes(sizes['disk_bytes'])} on disk, "
        f"{sizes['bits_per_weight']:.3g} bits per weight",
        *(
            f"  {'' if i else 'weights':<10}  {line}"
            for i, line in enumerate(_weights(manifest, model))
        ),
        f"  layers      {len(model.kv_shapes)} with {heads}; hidden size {model.hidden_size}",
        f"  KV cache    {cache} for {manifest.capacity} tokens, {model.cache_dtype}",
        f"  memory      at least {format_bytes(sizes['memory_bytes'])}: weights and KV cache",
        *kept,
    ]


def _sizes(manifest: Manifest, model: ModelEntry) -> dict[str, Any]:
    """Return what a model takes on disk and in memory."""
    disk = folder_bytes(manifest, model.graph)
    cache = model.cache_bytes(manifest.capacity)
    return {
        "disk_bytes": disk,
        "bits_per_weight": round(8 * disk / max(model.parameters, 1), 3),
        "kv_cache_bytes": cache,
        "memory_bytes": disk + cache,
    }


def _weights(manifest: Manifest, model: ModelEntry) -> list[str]:
    """Describe the weights: the precision, or a line for each kind that is stored as integers."""
    kinds = [
        f"{kept.kind}: {kept.tensors} tensors, {kept.weights:,} weights of "
        f"{kept.bits_per_weight:g} bits, "
        + (f"off by up to {kept.max_error:.2g}" if kept.max_error else "exact")
        for kept in model.kept_weights
    ]
    return kinds or [manifest.precision]


if __name__ == "__main__":
    main()
