"""Markdown for the READMEs that are saved beside results."""

from collections.abc import Sequence

from sae.messages import printable

PLACE = "FOLDER_OR_REPO"  # in an example, what a push replaces by the repository's name


ACTIVE = {ord("<"): "&lt;", ord("["): "\\[", ord("]"): "\\]", ord("|"): "\\|"}


def inert(text: str) -> str:
    """`text` on one line, as what it says: it makes no HTML, link, picture or column."""
    return printable(" ".join(text.split())).translate(ACTIVE)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table. The first column is left-aligned, the others right-aligned."""
    return [
        "| " + " | ".join(map(inert, header)) + " |",
        "|" + "|".join(["-"] + ["-:"] * (len(header) - 1)) + "|",
        *("| " + " | ".join(map(inert, row)) + " |" for row in rows),
    ]


def loading_example(*, remote_code: bool, prompt: str | None = "The") -> list[str]:
    """The lines of a Python example that loads a checkpoint and continues `prompt`; None: that loads it alone.

    The tokenizer needs none of the folder's code. Unless it is told so, transformers asks whether to run it.
    """
    run, leave = (", trust_remote_code=True", ", trust_remote_code=False") if remote_code else ("", "")
    return [
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f'model = AutoModelForCausalLM.from_pretrained("{PLACE}"{run})',
        f'tokenizer = AutoTokenizer.from_pretrained("{PLACE}"{leave})',
        *(
            [f'print(tokenizer.decode(model.generate(**tokenizer("{prompt}", return_tensors="pt"))[0]))']
            if prompt is not None
            else []
        ),
        "```",
    ]
