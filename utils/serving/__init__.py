"""Serving: an endpoint of your own, and sandboxes by the thousand (08, 09)."""
