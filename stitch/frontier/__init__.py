"""What a composite must beat: models made of one donor alone, by the same means, at no more FLOPs and no more bytes."""
