"""Reduce activations inside forward hooks, without storing them."""
