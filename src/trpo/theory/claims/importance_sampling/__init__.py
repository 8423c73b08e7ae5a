"""Sampled surrogate, gradient and Fisher products against the exact ones; what importance ratios and γᵗ do."""
