"""Power of the board while something runs: INA sensors of a Jetson, or nvidia-smi."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

INTERVAL = 0.1  # seconds between two readings
WHOLE_BOARD = ("VDD_IN", "VIN")  # rails that all others are fed from

Reader = Callable[[], float]
"""Returns watts."""


def find_reader(sys_folder: Path = Path("/sys")) -> tuple[str, Reader] | None:
    """Return what can be read here and how, or None where the board reports no power."""
    return _ina_reader(sys_folder) or _nvidia_smi_reader()


class PowerMeter:
    """Mean power of a stretch of time; use it as a context. `watts` is None without a reading."""

    def __init__(self, reader: Reader | None) -> None:
        self._reader = reader
        self._readings: list[float] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self.seconds = 0.0

    def __enter__(self) -> PowerMeter:
        self._started = time.perf_counter()
        if self._reader is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._started
        self._done.set()
        if self._reader is not None:
            self._thread.join()

    @property
    def watts(self) -> float | None:
        """The mean."""
        return sum(self._readings) / len(self._readings) if self._readings else None

    def _read(self) -> None:
        assert self._reader is not None
        while True:
            self._readings.append(self._reader())
            if self._done.wait(INTERVAL):
                return


def _ina_reader(sys_folder: Path) -> tuple[str, Reader] | None:
    """The INA3221 sensors of a Jetson, in millivolts and milliamperes, by the names of their rails."""
    rails: dict[str, tuple[Path, Path]] = {}
    pattern = "bus/i2c/drivers/ina3221/*/hwmon/hwmon*/in*_label"
    for label in sorted(sys_folder.glob(pattern)):
        number = label.name.removeprefix("in").removesuffix("_label")
        volts, amperes = (
            label.with_name(f"in{number}_input"),
            label.with_name(f"curr{number}_input"),
        )
        if volts.exists() and amperes.exists():
            rails[label.read_text().strip()] = (volts, amperes)
    chosen = [name for name in WHOLE_BOARD if name in rails][:1] or sorted(rails)
    if not chosen:
        return None

    def read() -> float:
        pairs = (rails[name] for name in chosen)
        return sum(float(v.read_text()) * float(a.read_text()) / 1e6 for v, a in pairs)

    return f"INA3221: {' + '.join(chosen)}", read


def _nvidia_smi_reader() -> tuple[str, Reader] | None:
    """The GPU's own power, without the host's."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--query-gpu=power.draw", "--format=csv,noheader,nounits", "--id=0"]

    def read() -> float:
        answer = subprocess.run(  # noqa: S603 -- nvidia-smi, with our own arguments
            command, capture_output=True, text=True, check=True, timeout=10
        )
        return float(answer.stdout)

    try:
        read()
    except (OSError, ValueError, subprocess.SubprocessError):  # "[N/A]" on a Jetson
        return None
    return "nvidia-smi: GPU only", read
