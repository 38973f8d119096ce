"""Costs: prices, and which answers to pass on (notebooks 10, 11)."""
