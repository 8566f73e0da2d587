"""Ways to score prompt tokens, one a file."""
