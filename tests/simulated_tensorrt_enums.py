"""The enumerations of TensorRT that our code uses, and its logger, for the simulated TensorRT."""

from __future__ import annotations

from enum import Enum, IntEnum
from typing import Any

DataType = Enum("DataType", "FLOAT HALF BF16 INT8 INT32 INT64 BOOL UINT8 FP8 INT4")


class TensorIOMode(Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class TensorLocation(Enum):
    DEVICE = 0
    HOST = 1


class AllocationStrategy(Enum):
    STATIC = 0
    ON_PROFILE_CHANGE = 1
    USER_MANAGED = 2


class Severity(IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class SimulatedLogger:
    """Stands for `ILogger`."""

    Severity = Severity

    def log(self, severity: Any, message: str) -> None:
        raise NotImplementedError("ILogger.log is for the application")
