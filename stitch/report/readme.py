"""The model card of every model that stitch writes: README.md, ready for the Hub."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from stitch.files.front_matter import front_matter
from stitch.files.markdown import markdown_table
from stitch.files.recipe import card_section
from stitch.report.origin import Relation, origin_metadata, origin_section

Table = tuple[list[str], list[list[str]], str]  # header, rows, title
MADE_WITH = "Made with [stitch-lm](https://pypi.org/project/stitch-lm/)."


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What a card says. `made` are the sentences on how the model was made, `example` the lines that show how to use it.

    `models` are those it was made from, as a report's `provenance` has them; `relation` is how it relates to them. `pictures`
    are lines above the tables. `report` is the file beside the card that holds the same for programs.
    """

    name: str
    made: Sequence[str]
    tags: Sequence[str]
    models: Iterable[dict]
    relation: Relation
    example: Sequence[str]
    tables: Iterable[Table]
    notes: Sequence[str]
    report: str
    recipe: dict
    pictures: Sequence[str] = ()
    more: dict = field(default_factory=dict)  # further metadata

    def to_bytes(self) -> bytes:
        models = list(self.models)
        metadata = {
            "library_name": "transformers",
            "pipeline_tag": "text-generation",
            "tags": ["stitch", *self.tags],
            **origin_metadata(models, self.relation),
            **self.more,
        }
        lines = [*front_matter(metadata), f"# {self.name}", "", *(line for one in self.made for line in (one, ""))]
        lines += [*self.example, ""]
        for number, (header, rows, title) in enumerate(self.tables):
            lines += [f"## Results ({title})", "", *(self.pictures if not number else ())]
            lines += [*markdown_table(header, rows), ""]
        lines += [*(f"- {note}" for note in self.notes), ""]
        lines += origin_section(models)
        lines += card_section(self.recipe, self.report)
        lines += [f"`{self.report}` holds the same with settings and versions. {MADE_WITH}", ""]
        return "\n".join(lines).encode()
