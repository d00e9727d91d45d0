"""CoSpec beside other runtimes on the same model: `python -m bench.peers --help`."""
