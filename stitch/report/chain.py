"""The report of a chain: that of its last seam, with every model, every seam and every intermediate composite."""

from collections.abc import Sequence

from stitch.composite.parts import Part, joined
from stitch.files.recipe import recipe
from stitch.models.provenance import described
from stitch.models.sources import Source


def chain_report(
    parts: Sequence[Part], reports: Sequence[dict], request: dict, sources: Sequence[Source], *, head_alone: bool
) -> dict:
    """report.json of a chain: that of its last seam, in which `a` is the composite before it, and the key "chain".

    `head_alone`: the last part runs no block.
    """
    models = {parts[0].model: _row(reports[0], "a", parts[0].model)}
    for part, report in zip(parts[1:], reports, strict=True):
        models.setdefault(part.model, _row(report, "b", part.model))
    seams = [
        {
            "from": {"model": early.model, "site": early.stop},
            "to": {"model": late.model, "site": late.start},
            "site": report["site"],  # "a" counts the blocks of the composite so far
            "chosen": report["chosen"],
            "across_tokenizers": "across" in report,
            "composite": _row(report, "composite", joined(parts[: number + 1])),
        }
        for number, (early, late, report) in enumerate(zip(parts, parts[1:], reports, strict=False), 1)
    ]
    last = reports[-1]
    listed = [{"model": part.model, "from": part.start, "to": part.stop} for part in parts]
    provenance = {
        **last["provenance"],
        "settings": request,
        "models": {f"part {number}": described(source) for number, source in enumerate(sources, 1)},
    }
    return {
        **last,
        "chain": {
            "parts": listed,
            "head_alone": head_alone,
            "models": list(models.values()),
            "seams": seams,
        },
        "seconds": {
            f"seam {number}: {stage}": value
            for number, report in enumerate(reports, 1)
            for stage, value in report["seconds"].items()
        },
        "provenance": provenance,
        "recipe": recipe("chain", {**provenance, "settings": {**request, "parts": listed}}),
    }


def _row(report: dict, name: str, shown: str) -> dict:
    """A row under another name. KL and top-1 agreement are left out, as they compare with the second model of that seam."""
    row = next(row for row in report["results"] if row["name"] == name)
    return {"name": shown, **{key: row[key] for key in ("ce", "ce_low", "ce_high", "ppl")}}


def rows(chain: dict) -> list[dict]:
    """The first rows of the table: the whole models, then the composites that are not among the rows of the last seam."""
    models = [{**row, "name": f"model {row['name']}"} for row in chain["models"]]
    return models + [
        {**seam["composite"], "name": f"after seam {number}"} for number, seam in enumerate(chain["seams"][:-2], 1)
    ]


def label(name: str, chain: dict) -> str:
    """A row's name; `a` and `b` with the model or composite that they are in the last seam."""
    before = len(chain["seams"]) - 1
    shown = {"a": f"after seam {before}" if before else chain["parts"][0]["model"], "b": chain["parts"][-1]["model"]}
    return f"{name} ({shown[name]})" if name in shown else name


def title(chain: dict) -> str:
    """The parts with their blocks, such as "demo:gpt2[:3] + demo:llama[4:]"."""
    return joined([_part(part) for part in chain["parts"]])


def made(chain: dict) -> str:
    """How the composite was made, for the model card."""
    blocks = [f"{what} of {part['model']}" for part, what in zip(chain["parts"], ran(chain), strict=True)]
    chosen = ", ".join(seam["chosen"] for seam in chain["seams"])
    start = ", ".join(blocks[:-1])
    return (
        f"{start[0].upper()}{start[1:]}, and {blocks[-1]}, joined by translations ({chosen}). Each was fitted in closed form "
        "on the activations of the composite before it. No weight was fine-tuned."
    )


def ran(chain: dict) -> list[str]:
    """What runs of the model of each part."""
    found = [_blocks(part["from"], part["to"]) for part in chain["parts"]]
    return [*found[:-1], "the final norm and the head"] if chain.get("head_alone") else found


def _blocks(start: int, stop: int | None) -> str:
    if stop is None:
        return f"the blocks from {start} on"
    return f"block {start}" if stop == start + 1 else f"blocks {start} to {stop - 1}"


def footnotes(chain: dict) -> list[str]:
    """A sentence per seam, and which seam the rest of the report is about."""
    lines = []
    for number, seam in enumerate(chain["seams"], 1):
        source, target, row = seam["from"], seam["to"], seam["composite"]
        lines.append(
            f"Seam {number}: {source['model']} at block {source['site']} to {target['model']} at block {target['site']}, "
            f"translation {seam['chosen']}. Cross-entropy of {row['name']}: {row['ce']:.3f} "
            f"({row['ce_low']:.3f} – {row['ce_high']:.3f})."
        )
        if seam.get("across_tokenizers"):
            lines[-1] += (
                f" Its numbers leave out predictions of special tokens, and {target['model']} is measured in its own tokens."
            )
    return [*lines, f"The rows from `a` on and the notes below are those of seam {len(chain['seams'])}."]


def _part(entry: dict) -> Part:
    return Part(entry["model"], entry["from"], entry["to"])
