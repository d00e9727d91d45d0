"""Export of checkpoints to sealed bundles of ONNX graphs: lowering, parity gate, writer."""
