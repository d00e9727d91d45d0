"""The simulated device itself: it finds the mistakes that it is there to find."""

from __future__ import annotations

import numpy as np
import pytest
from simulated_cuda import CudaError, SimulatedCuda

from cospec.errors import BackendError
from cospec.runtime.tensorrt.cuda import Cuda, Stream

# The simulation itself


def test_the_simulation_shows_a_read_before_the_wait():
    cuda = SimulatedCuda()
    stream = Stream(Cuda(cuda))
    _, address = cuda.cudaMalloc(256)
    source, target = np.arange(4.0), np.zeros(4)
    stream.upload(address, source)
    stream.download(target, address)
    assert not target.any(), "nothing has run yet"
    source[:] = 7
    stream.synchronize()
    assert target.tolist() == [7] * 4, "and an input that was reused too early is seen"


def test_the_simulation_captures_nothing_on_the_default_stream():
    cuda = SimulatedCuda()
    mode = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    assert cuda.cudaStreamBeginCapture(0, mode) == (CudaError.cudaErrorStreamCaptureUnsupported,)


def test_the_simulation_spoils_a_capture_in_which_somebody_waits():
    stream = Stream(Cuda(SimulatedCuda()))
    with pytest.raises(BackendError, match="cudaErrorStreamCaptureUnsupported"):
        stream.capture(stream.synchronize)
    stream.synchronize()
