"""A document in the context becomes a document in the weights."""
