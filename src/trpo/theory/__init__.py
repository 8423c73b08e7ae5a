"""``trpo theory``: every claim from plain gradient descent to TRPO, checked on exact MDPs in float64."""
