"""TRPO bounds the mean KL, not the theory's max: what that keeps, what it costs, and how often η falls."""
