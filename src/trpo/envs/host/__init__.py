"""Environments that are stepped from the host."""
