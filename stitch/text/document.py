"""What a document is: its name and its text."""

Document = tuple[str, str]
