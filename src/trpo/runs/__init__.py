"""Runs with a directory: checkpoints, metrics, progress, sweeps."""
