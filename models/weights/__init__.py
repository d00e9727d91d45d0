"""Weights as their author stored them: one tensor at a time, quantised ones in their own numbers."""
