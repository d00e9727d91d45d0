"""The device kit: build, check and measure bundles on the TensorRT and the GPU of a machine."""
