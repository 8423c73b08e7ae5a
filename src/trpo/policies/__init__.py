"""Policies and value functions: networks, and what their outputs mean."""
