"""Everything fitted from data: tasks, rollouts, the arbiter's policy, thresholds."""
