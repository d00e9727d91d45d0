"""Bundles behind the interfaces of other libraries."""
