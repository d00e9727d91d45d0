"""Whose token stays at a mismatch: the learned arbiter, its rivals, and the caps on all of them."""
