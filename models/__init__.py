"""Models: presets, checkpoints, shared vocabulary, the tiny pair."""
