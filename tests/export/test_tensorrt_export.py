"""cospec-export --trt: the device decides the form, memory is planned, engines built or marked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from click.testing import CliRunner, Result
from simulated_tensorrt import VERSIONS, simulate

import cospec
from cospec.errors import BackendError, GateError, MissingExtraError, UsageError
from cospec.export import build_only, cli, tensorrt_choice
from cospec.runtime.bundle.reader import Bundle
from cospec.runtime.tensorrt import bundle_engines as engines
from cospec.runtime.tensorrt import devices
from cospec.runtime.tensorrt.api import Gpu
from cospec.runtime.tensorrt.bundle_engines import plan_keys
from cospec.runtime.tensorrt.devices import GENERIC, resolve_device
from cospec.runtime.tensorrt.plan_store import PlanStore


@pytest.fixture(scope="module")
def trt() -> Any:
    return pytest.importorskip(
        "tensorrt_rtx", reason='no TensorRT-RTX here: pip install "cospec[rtx]"'
    )


@pytest.fixture(scope="module")
def llama(checkpoint_of: Callable[..., Path]) -> Path:
    return checkpoint_of("llama", layers=1)


def export(*arguments: object) -> Result:
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def export_for(device: str, llama: Path, output: Path, *more: object) -> Result:
    arguments = ("--target", llama, "--draft", "none", "--capacity", 64, "--output", output)
    return export(*arguments, "--trt", "--device", device, *more)


@pytest.mark.parametrize(
    ("device", "lowering", "opset", "built_for", "sm"),
    [
        ("agx-orin-jp6", "portable", 18, "SM86", 87),
        ("thor-jp7.2", "scatter", 24, "SM120", 110),
    ],
)
def test_a_jetson_gets_its_form_and_builds_its_engines_itself(
    device, lowering, opset, built_for, sm, trt, llama, tmp_path, monkeypatch
):
    result = export_for(device, llama, tmp_path / "llama-8b")
    assert result.exit_code == 0, result.output
    assert f"Memory on {device}:" in result.stdout
    assert "sum" in result.stdout
    assert f"The engines are built on the device ({device})" in result.stdout
    bundle = Bundle.open(tmp_path / "llama-8b")
    entry = bundle.manifest.engines
    assert (entry.device, entry.flavour, entry.sm) == (device, "tensorrt", sm)
    assert (bundle.manifest.lowering, bundle.manifest.precision) == (lowering, "fp16")
    model = onnx.load(bundle.path("target/model.onnx"), load_external_data=False)
    assert {o.domain: o.version for o in model.opset_import}[""] == opset
    certificate = json.loads(bundle.path("certificate.json").read_text())
    checked = certificate["engines"]["target"]
    assert (checked["parsed"], checked["built_for"], checked["plan"]) == (True, built_for, False)
    assert not (bundle.root / "engines").exists()
    monkeypatch.setattr(build_only, "find_gpu", lambda: None)
    refused = export("--build-only", bundle.root)
    assert refused.exit_code == BackendError.exit_code
    assert f"engines for {device} cannot be built on this machine" in refused.stderr


def test_weights_in_few_bits_are_exported_for_a_device(trt, checkpoint_of, tmp_path):
    """And a single head of keys and values gets the form that its TensorRT builds."""
    one = checkpoint_of("llama", layers=1, overrides={"num_key_value_heads": 1})
    result = export_for("thor-jp7.2", one, tmp_path / "bundle", "--weights", "int4")
    assert result.exit_code == 0, result.output
    assert "weights in int4" in result.stdout
    assert "form portable: a model has a single head" in result.stdout
    manifest = Bundle.open(tmp_path / "bundle").manifest
    assert manifest.lowering == "portable"
    assert {kept.kind.partition(" ")[0] for kept in manifest.models.target.kept_weights} == {"int4"}
    model = onnx.load(tmp_path / "bundle/target/model.onnx", load_external_data=False)
    assert {o.domain: o.version for o in model.opset_import}[""] == 21
    checked = json.loads((tmp_path / "bundle/certificate.json").read_text())["engines"]["target"]
    assert (checked["parsed"], checked["built_for"]) == (True, "SM120")


@pytest.fixture(scope="module")
def rtx_bundle(trt: Any, llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("rtx") / "llama"
    result = export_for("rtx-4090", llama, output, "--json")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)["engines"]
    assert (answer["device"], answer["status"]) == ("rtx-4090", "built")
    assert answer["memory"]["total"] < answer["memory"]["device"] == 24 << 30
    return output


def test_an_rtx_card_gets_its_engine_with_the_bundle(rtx_bundle, trt):
    bundle = Bundle.open(rtx_bundle)
    key = plan_keys(bundle.manifest, trt, 89)["target"]
    store = PlanStore(bundle.root)
    assert store.find("target", key) is not None
    assert "Layers:" in (store.find("target", key).with_suffix(".log")).read_text()
    assert all(not entry.path.startswith("engines") for entry in bundle.manifest.files)


def test_build_only_builds_what_is_missing_and_nothing_else(rtx_bundle, trt, monkeypatch):
    def unknown() -> None:
        raise MissingExtraError("cuda-bindings", "trt", "Looking for a GPU")

    monkeypatch.setattr(build_only, "find_gpu", unknown)  # engines of RTX cards need no GPU
    again = export("--build-only", rtx_bundle)
    assert (again.exit_code, again.stdout) == (0, "All engines for SM 89 exist already.\n")
    other = export("--build-only", rtx_bundle, "--device", "rtx-5090", "--json")
    assert json.loads(other.stdout)["built"] == ["target"], other.output
    bundle = Bundle.open(rtx_bundle)
    for sm in (89, 120):
        key = plan_keys(bundle.manifest, trt, sm)["target"]
        assert PlanStore(bundle.root).find("target", key) is not None


def test_a_stale_plan_is_built_again(rtx_bundle, trt, monkeypatch):
    monkeypatch.setattr(build_only, "find_gpu", lambda: None)
    key = plan_keys(Bundle.open(rtx_bundle).manifest, trt, 89)["target"]
    plan = PlanStore(rtx_bundle).find("target", key)
    plan.write_bytes(plan.read_bytes()[:-1])
    assert PlanStore(rtx_bundle).find("target", key) is None
    result = export("--build-only", rtx_bundle, "--json")
    assert json.loads(result.stdout)["built"] == ["target"], result.output
    assert PlanStore(rtx_bundle).find("target", key) == plan


@pytest.fixture(scope="module")
def orin_bundle(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A bundle for a Jetson Orin by its form, exported once; the simulated GPU is one."""
    made: dict[str, Path] = {}

    def get(form: str) -> Path:
        if form not in made:
            made[form] = tmp_path_factory.mktemp("orin") / form
            result = export_for(ORINS[form], llama, made[form])
            assert result.exit_code == 0, result.output
        return made[form]

    return get


ORINS = {"portable": "agx-orin-jp6", "scatter": "agx-orin-jp7.2"}


@pytest.mark.parametrize("named_first", [True, False])
@pytest.mark.parametrize("form", list(ORINS))
def test_simulated_a_device_that_is_named_builds_its_own_engines(
    form, named_first, orin_bundle, tmp_path, monkeypatch
):
    bundle = Path(shutil.copytree(orin_bundle(form), tmp_path / "bundle"))
    simulate(monkeypatch, VERSIONS[form])
    named, unnamed = ("--device", ORINS[form]), ()
    first, second = (named, unnamed) if named_first else (unnamed, named)
    result = export("--build-only", bundle, *first)
    assert result.exit_code == 0, result.output
    assert "Engines for SM 87 built in" in result.stdout
    (plan,) = bundle.glob("engines/*/target.plan")
    assert plan.parent.name == f"tensorrt-{VERSIONS[form]}-sm87"
    again = export("--build-only", bundle, *second)
    assert (again.exit_code, again.stdout) == (0, "All engines for SM 87 exist already.\n")

    def nothing(*arguments: object) -> None:
        raise AssertionError("cospec-run finds what --build-only built")

    monkeypatch.setattr(engines, "build_engine", nothing)
    session = cospec.load(bundle, backend="tensorrt", drafter="ngram")
    assert session.generate("one two three", max_tokens=4).tokens


def test_simulated_another_device_than_this_machine_is_refused(orin_bundle, monkeypatch):
    bundle = orin_bundle("scatter")
    simulate(monkeypatch)
    for device in ("thor-jp7.2", "h100"):
        refused = export("--build-only", bundle, "--device", device)
        assert refused.exit_code == BackendError.exit_code
        assert f"engines for {device} cannot be built on this machine" in refused.stderr
    assert not (bundle / "engines").exists()


def test_simulated_a_jetpack_too_old_for_the_graphs_is_refused(orin_bundle, monkeypatch):
    simulate(monkeypatch, VERSIONS["portable"])
    refused = export("--build-only", orin_bundle("scatter"), "--device", "agx-orin-jp7.2")
    assert refused.exit_code == BackendError.exit_code
    assert "need TensorRT 10.15 or newer; this is 10.3.0" in refused.stderr


def test_a_failed_lint_leaves_no_bundle(trt, llama, tmp_path, monkeypatch):
    def refuse(*arguments: object) -> None:
        raise GateError("model.onnx as TensorRT reads it: no mask")

    monkeypatch.setattr(engines, "lint_network", refuse)
    result = export_for("rtx-4090", llama, tmp_path / "refused")
    assert result.exit_code == GateError.exit_code
    assert "no mask" in result.stderr
    assert [path for path in tmp_path.iterdir() if path.suffix != ".lock"] == []


def test_what_does_not_fit_is_refused_before_any_work(llama, tmp_path, monkeypatch):
    small = replace(resolve_device("rtx-3060"), memory_bytes=100 << 20)
    monkeypatch.setitem(devices.DEVICES, "rtx-3060", small)
    result = export_for("rtx-3060", llama, tmp_path / "large")
    assert result.exit_code == 7
    assert "rtx-3060 has 100.0 MiB" in result.stderr
    assert "target" in result.stderr, "the whole sum is shown"
    assert not (tmp_path / "large").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--trt", "--device", "toaster"], "unknown device 'toaster'"),
        (["--device", "rtx-4090"], "--device is for TensorRT"),
        (["--trt", "--device", "rtx-4090", "--lowering", "gqa"], "gqa is for ONNX Runtime"),
        (["--trt", "--device", "thor-jp7.1", "--lowering", "scatter"], "does not read"),
        (["--trt", "--device", "rtx-4090", "--precision", "fp32"], "no fp32 kernel"),
        (
            ["--trt", "--device", "agx-orin-jp6", "--weights", "fp8"],
            "(SM 87) does not take weights in",
        ),
        (
            ["--trt", "--device", "rtx-2080", "--weights", "int4"],
            "(SM 75) does not take weights in",
        ),
        (["--weights", "fp8"], "--weights fp8 is for TensorRT"),
        (["--build-only", "somewhere"], "--build-only exports nothing"),
    ],
)
def test_what_cannot_be_asked_for(arguments, words, llama):
    result = export("--target", llama, *arguments)
    assert result.exit_code == UsageError.exit_code
    assert words in result.stderr


def test_build_only_looks_at_no_option_of_an_export():
    result = export("--build-only", "somewhere", "--capacity", 64, "--force")
    assert result.exit_code == UsageError.exit_code
    assert "leave --capacity, --force out" in result.stderr


def test_a_target_is_needed():
    result = export("--trt")
    assert result.exit_code == 2
    assert "--target" in result.stderr


def test_graphs_for_onnx_runtime_have_no_engines(tiny_pair_bundle):
    result = export("--build-only", tiny_pair_bundle)
    assert result.exit_code == UsageError.exit_code
    assert "export the bundle again with --trt" in result.stderr


# The machine at hand.


def test_without_a_gpu_the_graphs_are_for_any_device(monkeypatch):
    monkeypatch.setattr(tensorrt_choice, "find_gpu", lambda: None)
    device, note = tensorrt_choice.choose_device(None)
    assert device == GENERIC
    assert "this machine has no GPU" in note
    assert "--device" in note


def test_without_cuda_bindings_nobody_can_know(monkeypatch):
    def missing() -> None:
        raise MissingExtraError("cuda-bindings", "trt", "Looking for a GPU")

    monkeypatch.setattr(tensorrt_choice, "find_gpu", missing)
    device, note = tensorrt_choice.choose_device(None)
    assert device == GENERIC
    assert "cuda-bindings" in note


def test_this_machine_is_the_default(monkeypatch):
    class Installed:
        __name__ = "tensorrt"
        __version__ = "10.16.2.1"

    gpu = Gpu("Thor", 110, 128 << 30, unified=True)
    monkeypatch.setattr(tensorrt_choice, "find_gpu", lambda: gpu)
    monkeypatch.setattr(tensorrt_choice, "import_tensorrt", Installed)
    device, note = tensorrt_choice.choose_device(None)
    assert note is None
    assert (device.sm, device.flavour, device.lowering) == (110, "tensorrt", "scatter")
