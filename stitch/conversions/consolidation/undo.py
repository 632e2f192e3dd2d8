"""`stitch convert undo`: takes the document that was consolidated last out of a model, bit for bit."""

import shutil
from pathlib import Path

from stitch.conversions.consolidation.kept import SHARD, Undo, copy_kept, undo_of
from stitch.files.folders import to_json
from stitch.files.job import Job, run
from stitch.files.links import require_inside
from stitch.files.markdown import loading_example
from stitch.files.recipe import recipe
from stitch.files.shards import write_shards
from stitch.files.tokenizer import copy_tokenizer
from stitch.models.provenance import described, versions
from stitch.models.sources import Source, resolve
from stitch.pages.card import page_and_card
from stitch.pages.page import Page
from stitch.pages.section import Section, ungrouped
from stitch.progress import Progress
from stitch.report.readme import ModelCard

BESIDE = ("config.json", "generation_config.json", "*.py")  # the weights, beside the tokenizer


def undo(name: str, out: Path, *, overwrite: bool = False, progress: Progress | None = None) -> dict:
    """Writes the donor of the consolidated model `name` to `out`, with its tensors as they were, from the model's folder alone.

    They are in the dtype that the conversion ran in. Of documents that were consolidated one after another it is the last that is
    taken out; the others can be taken out of the result. Documents that were written together come out together.
    Raises UsageError for a model that was not consolidated or has changed since, StitchError where its `undo/` is damaged.
    """

    def plan() -> Job:
        source = resolve(name, progress=progress)
        found = undo_of(source.folder, name)

        def make(scratch: Path, output: Path) -> dict:
            output.mkdir()
            write_shards(output, {**found.restored}, SHARD)
            _copy_beside(source.folder, output)
            copy_kept(source.folder / "undo", output)
            report = assemble_report(source, found)
            (output / "report.json").write_bytes(to_json(report))
            for name, content in page_and_card(_page(report), _card(report, has_code=any(output.glob("*.py")))).items():
                (output / name).write_bytes(content)
            return report

        return Job(make=make)

    return run("convert undo", plan, out, overwrite=overwrite)[0]


def _copy_beside(source: Path, target: Path) -> None:
    for pattern in BESIDE:
        for file in sorted(source.glob(pattern)):
            require_inside(file, source)
            shutil.copyfile(file, target / file.name)
    copy_tokenizer(source, target)


def assemble_report(source: Source, found: Undo) -> dict:
    """report.json: what was taken out, and how many tensors were put back. All are checked, so there are no scores."""
    provenance = {"settings": {"model": source.name}, "models": {"undone": described(source)}, "versions": versions()}
    return {
        "conversion": "undo",
        "model": source.name,
        "title": f"{source.name} without {found.document}",
        "made": f"Taken out again: {found.document}. All tensors have the SHA-256 that they had before.",
        "document": found.document,
        "tensors": {"restored": found.replaced, "of": len(found.restored)},
        "provenance": provenance,
        "recipe": recipe("convert undo", provenance),
    }


def table(report: dict) -> tuple[list[str], list[list[str]], str]:
    """Header, rows and title of the table of tensors."""
    restored, of = report["tensors"]["restored"], report["tensors"]["of"]
    rows = [["restored", f"{restored:,}"], ["as they were", f"{of - restored:,}"]]
    return ["", "tensors"], rows, report["title"]


def _page(report: dict) -> Page:
    sections = [Section(name="tensors", heading="Tensors", tables=[ungrouped(table(report))])]
    return Page(title=report["title"], lead=report["made"], facts=[], sections=sections)


def _card(report: dict, *, has_code: bool) -> ModelCard:
    return ModelCard(
        name=report["title"],
        made=[report["made"]],
        tags=["convert-undo"],
        models=[*report["provenance"]["models"].values()],
        relation="finetune",
        example=loading_example(remote_code=has_code),
        tables=[table(report)],
        notes=[],
        report="report.json",
        recipe=report["recipe"],
    )
