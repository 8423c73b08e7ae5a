"""The local problem has a closed-form solution, and truncated conjugate gradient gets close to it at a known rate."""
