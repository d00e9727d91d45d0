"""Accuracy and speed of the ways to decode, measured item by item."""
