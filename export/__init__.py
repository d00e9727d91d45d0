"""From a Hugging Face checkpoint to a sealed bundle of ONNX graphs: lowering, parity gate, writer."""
