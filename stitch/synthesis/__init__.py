"""Circuits that are written down by hand and compiled to the weights of stock architectures."""
