"""Engines, which execute decoder graphs: their protocol, and ONNX Runtime."""
