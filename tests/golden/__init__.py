"""Short runs whose bits must not change when code is moved: see ``python -m tests.golden --help``."""
