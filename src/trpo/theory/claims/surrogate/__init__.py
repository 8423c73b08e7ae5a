"""The surrogate matches the return in value and gradient; what it misses is of second order, and known."""
