"""The model cards of what is compiled: circuits from a specification, and tools inside a trained model."""

from stitch.files.markdown import loading_example
from stitch.report.origin import entry
from stitch.report.readme import ModelCard
from stitch.synthesis.report import notes, tables, title, tool_notes, tool_table

NAMES = {
    "automaton": "Compiled automaton",
    "turing": "Compiled universal Turing machine",
    "subleq": "Compiled SUBLEQ machine",
    "pattern": "Compiled attention pattern",
    "induction": "Compiled induction circuit",
}


def compiled_card(report: dict) -> ModelCard:
    """The card of a compiled checkpoint, from the certificate that it was written with."""
    description = report["description"]
    return ModelCard(
        name=NAMES[description["kind"]],
        made=[
            f"    {title(report)}",  # as code: it may hold a regular expression
            "The weights were written from the specification in `synthesis.json`, without data and without training. "
            "`stitch certify` tests them.",
            *(f"Its tokenizer is that of {entry(one)}." for one in report["provenance"]["models"].values()),
        ],
        tags=[f"compile-{description['kind']}"],
        models=[],
        relation="finetune",
        example=loading_example(remote_code=False, prompt=None),
        tables=[(header, rows, "certificate") for header, rows, _ in tables(report)],
        notes=notes(report),
        report="certificate.json",
        recipe=report["recipe"],
    )


def tool_card(report: dict) -> ModelCard:
    """The card of a model with a tool inside."""
    return ModelCard(
        name=f"{report['host']} with an automaton inside",
        made=[
            "The automaton reads the characters of every token. Its state is the row of `readout.safetensors` with the largest "
            "product with the last hidden state. The host's own weights were kept; nothing was trained."
        ],
        tags=["compile-tool"],
        models=[*report["provenance"]["models"].values()],
        relation="finetune",
        example=loading_example(remote_code=False),
        tables=[tool_table(report)],
        notes=tool_notes(report),
        report="tool.json",
        recipe=report["recipe"],
    )
