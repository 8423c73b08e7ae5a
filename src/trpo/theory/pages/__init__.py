"""What the claims found, as a table and as pages."""
