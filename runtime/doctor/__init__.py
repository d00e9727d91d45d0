"""Checks of a machine: what is installed, what fits it, and the commands that solve problems."""
