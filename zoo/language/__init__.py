"""Encoders of language: pretraining, heads, and the weights that others have published."""
