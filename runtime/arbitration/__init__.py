"""Decisions at mismatches: the learned arbiter, baseline rules, and the caps on all of them."""
