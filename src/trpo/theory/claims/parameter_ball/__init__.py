"""Equal steps in parameters are unequal steps in policies; the natural gradient measures steps by policies."""
