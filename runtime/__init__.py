"""The torch-free runtime: bundle reader, engines, drafters, the speculative loop, text."""
