"""The arbiter from branches to a bundle: network, rollouts, training, threshold, install."""
