"""From an ONNX graph to a TensorRT plan: devices, profiles, builder, lint, memory plan, plan store."""
