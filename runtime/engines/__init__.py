"""What executes a decoder graph: the protocol, and one module a backend."""
