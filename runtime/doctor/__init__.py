"""What is installed on a machine, what fits it, and the command that mends what does not."""
