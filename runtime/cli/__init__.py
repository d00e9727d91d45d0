"""The command-line tools that work on a finished bundle."""
