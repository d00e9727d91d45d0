"""Whole bundles in other weight formats: sealed, honest about what was measured, or not there."""

from __future__ import annotations

import errno
import json
import re
import shutil
from pathlib import Path

import pytest
from arbiters import GRAPH, bundle_with_arbiter, untrained_network
from click.testing import CliRunner
from msgspec.structs import replace

import cospec
from cospec.calibration.tasks import tiny_tasks
from cospec.calibration.weights import convert_bundle
from cospec.calibration.weights import converted_bundle as weights_bundle
from cospec.errors import BundleError, ResourceError, UsageError
from cospec.runtime.bundle.certificate import is_certified
from cospec.runtime.bundle.manifest import MANIFEST_NAME, EnginesEntry, from_json, to_json
from cospec.runtime.bundle.reader import Bundle, read_manifest
from cospec.runtime.cli.inspect import main as inspect
from cospec.runtime.cli.verify import main as verify
from cospec.runtime.tensorrt.bundle_engines import engine_specs

PROMPT = [{"role": "user", "content": "What is 12 + 30?"}]


@pytest.fixture(scope="module")
def with_arbiter(tiny_pair_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pair with an arbiter whose certificate is of these very files."""
    from cospec.calibration.arbiter.install import measured_on
    from cospec.calibration.arbiter.network_graph import export_arbiter

    folder = tmp_path_factory.mktemp("arbiter")
    export_arbiter(untrained_network(tiny_pair_bundle), folder / "model.onnx")
    bundle = bundle_with_arbiter(
        tiny_pair_bundle, folder / "model.onnx", folder / "pair", quality=True
    )
    manifest = read_manifest(bundle)
    certificate = json.loads((bundle / "certificate.json").read_text())
    hashes = measured_on(Bundle(bundle, manifest), bundle / GRAPH)
    certificate["quality"]["measured_on"] = hashes
    return with_certificate(bundle, certificate)


def with_certificate(bundle: Path, certificate: dict) -> Path:
    """Put a certificate into a bundle and seal it again."""
    from cospec.runtime.bundle.files import sha256_of

    path = bundle / "certificate.json"
    path.write_text(json.dumps(certificate))
    manifest = read_manifest(bundle)
    files = tuple(
        replace(entry, size=path.stat().st_size, sha256=sha256_of(path))
        if entry.path == "certificate.json"
        else entry
        for entry in manifest.files
    )
    (bundle / MANIFEST_NAME).write_bytes(to_json(replace(manifest, files=files)))
    return bundle


@pytest.mark.parametrize(
    ("target", "draft"), [("int8", "int4"), ("int4", "fp32"), ("fp16", "int8-rows")]
)
def test_a_format_for_each_role(tiny_pair_bundle, tmp_path, target, draft):
    made = convert_bundle(tiny_pair_bundle, tmp_path / "new", target, draft)
    done = CliRunner().invoke(verify, [str(made)])
    assert done.exit_code == 0, done.output
    assert "warning" not in done.output
    models = read_manifest(made).models
    assert models.target.weights == target
    assert models.draft.weights == (None if draft == "fp32" else draft)
    shown = CliRunner().invoke(inspect, [str(made)]).output
    assert re.findall(r"^  weights +(\S+)", shown, re.MULTILINE) == [target, draft]
    found, expected = (
        [
            session.generate(task.prompt, max_tokens=40).text
            for task in tiny_tasks("validation", 8, 0)
        ]
        for session in (cospec.load(made), cospec.load(tiny_pair_bundle))
    )
    # A near tie may fall another way; what spoils a format spoils nearly all outputs.
    assert sum(a == b for a, b in zip(found, expected, strict=True)) >= 5


def test_the_certificate_keeps_what_is_still_true(tiny_pair_bundle, tmp_path):
    before = json.loads((tiny_pair_bundle / "certificate.json").read_text())
    made = convert_bundle(tiny_pair_bundle, tmp_path / "new", "int8", "fp32", reduce_range=True)
    after = json.loads((made / "certificate.json").read_text())
    assert after["parity"] == {"draft": before["parity"]["draft"]}
    assert after["weights"] == {
        "source": read_manifest(tiny_pair_bundle).seal,
        "target": "int8",
        "draft": "fp32",
        "reduced_range": True,
    }
    draft = "draft/model.onnx.data"
    assert (made / draft).read_bytes() == (tiny_pair_bundle / draft).read_bytes()
    assert (made / draft).stat().st_nlink == 1, "the source can be converted again"


def test_an_arbiters_certificate_is_of_the_files_it_was_measured_on(with_arbiter, tmp_path):
    assert is_certified(with_arbiter, read_manifest(with_arbiter))
    same = convert_bundle(with_arbiter, tmp_path / "same", "fp32", "fp32")
    assert is_certified(same, read_manifest(same))
    other = convert_bundle(with_arbiter, tmp_path / "other", "fp32", "int8")
    manifest = read_manifest(other)
    assert manifest.models.arbiter == read_manifest(with_arbiter).models.arbiter
    assert not is_certified(other, manifest)
    assert cospec.load(other).generate(PROMPT, mode="collab", max_tokens=8).tokens


def test_a_bundle_without_converted_weights_keeps_its_seal(tiny_pair_bundle):
    data = (tiny_pair_bundle / MANIFEST_NAME).read_bytes()
    assert b'"weights"' not in data
    assert to_json(from_json(data)) == data


def test_a_manifest_with_an_unknown_format_is_refused(tiny_pair_bundle):
    target = read_manifest(tiny_pair_bundle).models.target
    with pytest.raises(BundleError, match="weights: invalid enum value"):
        replace(target, weights="int3")


def test_tensorrt_refuses_converted_weights(tiny_pair_bundle):
    manifest = read_manifest(tiny_pair_bundle)
    target = replace(manifest.models.target, weights="int8")
    models = replace(manifest.models, target=target)
    with pytest.raises(UsageError, match="converted to int8 for ONNX Runtime"):
        engine_specs(replace(manifest, lowering="portable", models=models))


@pytest.mark.parametrize("case", ["tensorrt", "converted", "fp16", "itself", "there"])
def test_what_cannot_be_converted(tiny_pair_bundle, tmp_path, case):
    source = shutil.copytree(tiny_pair_bundle, tmp_path / "source")
    manifest = read_manifest(source)
    output = tmp_path / "new"
    if case == "tensorrt":
        entry = EnginesEntry(device="rtx-4090", flavour="rtx", trt_version="1.7")
        manifest = replace(manifest, engines=entry)
    elif case == "converted":
        target = replace(manifest.models.target, weights="int4")
        manifest = replace(manifest, models=replace(manifest.models, target=target))
    elif case == "fp16":
        manifest = replace(manifest, precision="fp16")
    elif case == "itself":
        output = source
    else:
        shutil.copytree(tiny_pair_bundle, output)
    (source / MANIFEST_NAME).write_bytes(to_json(manifest))
    messages = {
        "tensorrt": "exported for TensorRT",
        "converted": "was converted to int4 already",
        "fp16": "only fp32 bundles are converted",
        "itself": "the output is the bundle that is converted",
        "there": "a bundle is there already",
    }
    kind = ResourceError if case == "there" else UsageError
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(kind, match=messages[case]):
        convert_bundle(source, output, "int8", "int8", force=case == "itself")
    assert [name for name in visible(tmp_path) if name not in before] == []
    assert read_manifest(source) == manifest


def test_a_damaged_source_is_refused_before_anything_is_written(tiny_pair_bundle, tmp_path):
    source = shutil.copytree(tiny_pair_bundle, tmp_path / "source")
    data = source / "target/model.onnx.data"
    content = bytearray(data.read_bytes())
    content[1000] ^= 1
    data.write_bytes(content)
    with pytest.raises(BundleError, match="SHA-256 differs"):
        convert_bundle(source, tmp_path / "new", "int8", "int8")
    assert visible(tmp_path) == ["source"]


@pytest.mark.parametrize("what", ["disk", "interrupt"])
def test_what_ends_early_leaves_the_old_bundle_alone(tiny_pair_bundle, tmp_path, monkeypatch, what):
    old = convert_bundle(tiny_pair_bundle, tmp_path / "new", "int4", "int4")
    seal = read_manifest(old).seal
    real = weights_bundle.convert

    def stop(graph, output, *arguments, **options):
        done = real(graph, output, *arguments, **options)
        if output.parent.name == "draft":
            raise (
                OSError(errno.ENOSPC, "No space left on device", str(output))
                if what == "disk"
                else KeyboardInterrupt
            )
        return done

    monkeypatch.setattr(weights_bundle, "convert", stop)
    with pytest.raises(ResourceError if what == "disk" else KeyboardInterrupt) as caught:
        convert_bundle(tiny_pair_bundle, tmp_path / "new", "int8", "int8", force=True)
    if what == "disk":
        assert "the disk is full" in str(caught.value)
    assert read_manifest(old).seal == seal
    assert visible(tmp_path) == ["new"]
    assert not list(tmp_path.glob(".new.staging*"))


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
