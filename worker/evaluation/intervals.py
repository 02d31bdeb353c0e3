"""Means over splits, and how far they can be trusted."""
