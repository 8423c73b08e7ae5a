"""Training: what is learned, and the loops that learn it."""
