"""Weights in a graph: products and embeddings that read quantised numbers, written one at a time."""
