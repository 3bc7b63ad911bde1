"""Sequence models with long memories."""
