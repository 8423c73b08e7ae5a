"""What the claims share."""
