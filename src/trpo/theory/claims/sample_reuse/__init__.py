"""Several updates on one batch: how far they may go together, and what they gain."""
