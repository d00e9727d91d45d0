"""Build, check and measure bundles on the TensorRT and the GPU of this machine, into one report.

Every step is written down when it ends. A run that was interrupted, or ran out of time, goes on where
it stopped: steps that passed on the same machine with the same bundle are not repeated.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from .... import __version__
from ....errors import CospecError
from ...bundle.reader import Bundle
from ...tensorrt.api import Gpu, import_tensorrt, read_gpu, version_of
from ...tensorrt.cuda import Cuda, import_cuda
from ..checks import check_machine
from ..machine import probe
from .kit_report import BundleResult, Environment, Report, read_report, write_report
from .kit_steps import BundleRun, KitItem, KitOptions
from .power import find_reader


def run_kit(
    items: Sequence[KitItem],
    output: Path,
    options: KitOptions,
    progress: Callable[[str], None] = lambda line: None,
) -> Report:
    """Run all steps of all bundles.

    Args:
        items: bundles, the smallest first.
        output: the report's file; one of an earlier run is continued.
        options: see there.
        progress: called with a line about each step.

    Raises:
        BundleError: a bundle is damaged.
        ResourceError: the report cannot be written.
    """
    started = time.monotonic()
    bundles = {item: Bundle.open(item.bundle) for item in items}
    today = datetime.now(timezone.utc).date().isoformat()
    report = Report(
        report_version=2,
        simulated=options.simulated,
        status="skipped",
        date=today,
        seconds=0.0,
    )
    found = _device()
    if isinstance(found, str):
        report.reason = found
        write_report(report, output)
        return report
    trt, cuda, gpu = found
    power = find_reader()
    report.environment = _environment(trt, cuda, gpu)
    report.power_source = power[0] if power else None
    machine = probe(output.parent)
    report.findings = tuple((f.level, f.topic, f.message) for f in check_machine(machine))
    earlier = _earlier(output, report)
    report.status, report.reason = "failed", "the run was interrupted; start it again to go on"
    for item, bundle in bundles.items():
        run = BundleRun(item, bundle, trt, gpu, options, started, progress)
        report.bundles[bundle.root.name] = result = run.result
        before = earlier.get(bundle.root.name)
        if before is not None and before.seal == result.seal:
            result.steps = {name: step for name, step in before.steps.items() if step.passed}
            result.speed = dict(before.speed)
        run.save = lambda: _save(report, output, started)
        run.all_steps(power[1] if power else None)
    report.status, report.reason = ("passed" if _passed(report) else "failed"), None
    _save(report, output, started)
    return report


def _device() -> tuple[Any, Any, Gpu] | str:
    """Return (trt, cuda, gpu), or the reason why there is nothing to run on."""
    try:
        cuda = import_cuda()
        Cuda(cuda)
        gpu = read_gpu(cuda)
        trt = import_tensorrt()
    except CospecError as error:
        return error.message
    return (trt, cuda, gpu) if gpu is not None else "CUDA does not describe the GPU"


def _earlier(output: Path, report: Report) -> dict[str, BundleResult]:
    """Return the results of an earlier run on this machine."""
    try:
        earlier = read_report(output)
    except CospecError:
        return {}
    alike = earlier.environment == report.environment and earlier.simulated == report.simulated
    return earlier.bundles if alike else {}


def _save(report: Report, output: Path, started: float) -> None:
    report.seconds = time.monotonic() - started
    write_report(report, output)


def _passed(report: Report) -> bool:
    """Return whether no step failed, and one bundle passed all of its own."""
    states = [bundle.status for bundle in report.bundles.values()]
    return "failed" not in states and "passed" in states


def _environment(trt: Any, cuda: Any, gpu: Gpu) -> Environment:
    device = Cuda(cuda)
    release = Path("/etc/nv_tegra_release")
    return Environment(
        gpu=gpu.name,
        sm=gpu.sm,
        memory_bytes=gpu.memory_bytes,
        unified_memory=gpu.unified,
        module=trt.__name__,
        tensorrt=version_of(trt),
        cuda_runtime=int(device.call("cudaRuntimeGetVersion")),
        cuda_driver=int(device.call("cudaDriverGetVersion")),
        jetson=release.read_text().splitlines()[0] if release.exists() else None,
        platform=platform.platform(),
        python=platform.python_version(),
        cospec=__version__,
    )
