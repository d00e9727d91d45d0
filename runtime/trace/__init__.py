"""A record of who chose each token and why, and the page that shows it."""
