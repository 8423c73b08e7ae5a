"""Climbing the lower bound itself: it touches η at π, so its maximum cannot be worse than π."""
