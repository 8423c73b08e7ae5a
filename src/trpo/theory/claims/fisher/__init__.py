"""The mean KL's second derivative is the Fisher matrix, and nothing of lower order is left."""
