"""One script a runtime, run in that runtime's environment and spoken to over pipes."""
