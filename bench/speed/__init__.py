"""cospec-bench speed, context and project: how fast, against whom, and what bounds it."""
