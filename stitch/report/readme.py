"""The model card of every model that stitch writes: README.md, ready for the Hub."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version

from stitch.files.front_matter import CARD, front_matter
from stitch.files.markdown import inert, markdown_table
from stitch.files.recipe import card_section
from stitch.report.origin import Relation, licence_file, origin_metadata, origin_section

Table = tuple[list[str], list[list[str]], str]  # header, rows, title
MADE_WITH = f"Made with stitch-lm {version('stitch-lm')}."  # no link: the package is on no index


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What a card says. `made` are the sentences on how the model was made, `example` the lines that show how to use it.

    `models` and `saes` are those it was made from, as a report's `provenance` has them; `relation` is how it relates to the
    models. `pictures` are lines above the tables. `report` is the file beside the card that holds the same for programs.
    """

    name: str
    made: Sequence[str]
    tags: Sequence[str]
    models: Sequence[dict]
    relation: Relation
    example: Sequence[str]
    tables: Iterable[Table]
    notes: Sequence[str]
    report: str
    recipe: dict
    pictures: Sequence[str] = ()
    saes: Sequence[dict] = ()
    more: dict = field(default_factory=dict)  # further metadata

    def files(self) -> dict[str, bytes]:
        """The card, and the list of licences that it links to where they differ, by name."""
        return {CARD: self.to_bytes(), **licence_file(self.models, self.saes)}

    def to_bytes(self) -> bytes:
        metadata = {
            "library_name": "transformers",
            "pipeline_tag": "text-generation",
            "tags": ["stitch", *self.tags],
            **origin_metadata(self.models, self.relation, self.saes),
            **self.more,
        }
        lines = [
            *front_matter(metadata),
            f"# {inert(self.name)}",
            "",
            *(line for one in self.made for line in (inert(one), "")),
        ]
        lines += [*self.example, ""]
        for number, (header, rows, title) in enumerate(self.tables):
            lines += [f"## Results ({inert(title)})", "", *(self.pictures if not number else ())]
            lines += [*markdown_table(header, rows), ""]
        lines += [*(f"- {inert(note)}" for note in self.notes), ""]
        lines += origin_section(self.models, self.saes)
        lines += card_section(self.recipe, self.report)
        lines += [f"`{self.report}` holds the same with settings and versions. {MADE_WITH}", ""]
        return "\n".join(lines).encode()
