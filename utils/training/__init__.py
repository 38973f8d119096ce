"""Training: the two recipe files, and what makes them fit a laptop (04 to 07)."""
