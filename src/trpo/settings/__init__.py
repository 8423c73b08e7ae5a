"""Every setting of a run, and the best-known ones."""
