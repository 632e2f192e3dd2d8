"""Fewer key and value heads: each group of old ones becomes one, by contraction, alternating least squares and ridge."""
