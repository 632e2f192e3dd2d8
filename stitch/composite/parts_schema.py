"""What a file that names the parts of a chain holds."""

from typing import Annotated

from pydantic import Field

from stitch.files.schema import Schema, Text

MOST_PARTS, MOST_BLOCKS = 1_000, 10_000  # more than any model has: a slip of the keyboard ends here
Block = Annotated[int, Field(ge=0, le=MOST_BLOCKS)]


class PartEntry(Schema):
    """Blocks `from` to `to` − 1 of a model: a Hub id, a folder, a .gguf file or demo:gpt2."""

    model: Text
    start: Block | None = Field(None, alias="from")
    stop: Block | None = Field(None, alias="to")


class ChainFile(Schema):
    parts: list[PartEntry] = Field(min_length=2, max_length=MOST_PARTS)
