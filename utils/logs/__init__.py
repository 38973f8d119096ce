"""Logs: what the product was asked and what it did (notebook 01)."""
