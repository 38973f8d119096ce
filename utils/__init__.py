"""Shared parts of the course: each module is one idea and can be imported alone."""
