"""What a sweep says instead of its picture where matplotlib is not installed."""

from stitch.errors import missing_extra, missing_of


def no_picture() -> list[str]:
    """A sentence; none where a picture can be drawn."""
    missing = missing_of("plot")
    return [f"No picture was made: {missing_extra('plot', 'it', missing)}"] if missing else []
