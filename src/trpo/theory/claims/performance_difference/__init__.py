"""The identity that compares two policies: exactly, in rounding error only, and along simulated paths."""
