"""Circuits written down on purpose, as weights that stock architectures run."""
