"""Schemes, the two loops that run them, and the registry of named samplers."""
