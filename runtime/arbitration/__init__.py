"""Whose token stays at a mismatch: the learned arbiter, its baselines, and the caps on all of them."""
