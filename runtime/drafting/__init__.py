"""Where proposals come from: a draft model or n-gram lookup."""
