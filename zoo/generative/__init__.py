"""Generative models: flows, autoencoders, adversarial networks."""
