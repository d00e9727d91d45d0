"""TensorRT: devices, building plans from ONNX graphs, checking and storing them, running them."""
