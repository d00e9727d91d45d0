"""What the models are: presets, checkpoints, shared vocabulary, the tiny pair."""
