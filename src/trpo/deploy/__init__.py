"""Policies that are taken away: what acts without JAX, in NumPy alone or in ONNX."""
