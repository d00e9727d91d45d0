"""What measured figures depend on beside models and data."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from typing import Any


def machine_facts() -> dict[str, Any]:
    """Return the machine and the versions that a measurement was made with."""
    return {
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
        "cospec": version("cospec"),
        "onnxruntime": version("onnxruntime"),
    }
