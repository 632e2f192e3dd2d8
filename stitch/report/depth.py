"""The tables of a depth sweep and the sentences below them."""

from stitch.evaluation.documents import phrase, warning
from stitch.report.notes import text_notes
from stitch.report.origin import origin_notes

ROWS = {"passthrough": "nothing refitted", "down-projection": "bridged by `down-projection`"}
MISSING = float("nan")


def kinds(report: dict) -> list[str]:
    """removed, repeated: what was tried."""
    return list(dict.fromkeys(cell["change"] for cell in report["cells"]))


def rows(report: dict) -> list[str]:
    """passthrough, down-projection: the rows that every range has."""
    return [row for row in ROWS if row in report["cells"][0]["sweep_ce"]]


def heat(report: dict, kind: str, row: str) -> tuple[str, list[str], list[list[str]], list[list[float]]]:
    """Title, header, rows and values of one kind's table: lengths down, first blocks across, in nats above the whole model.

    A range that does not exist has the value NaN. The best of each length in this row has a *.
    """
    cells = {(cell["length"], cell["first"]): cell for cell in report["cells"] if cell["change"] == kind}
    lengths, firsts = (sorted({key[place] for key in cells}) for place in (0, 1))
    best = {(one["length"], one["first"]) for one in best_in(report, kind, row)}
    whole = report["whole"]["sweep_ce"]

    def value(length: int, first: int) -> float:
        cell = cells.get((length, first))
        return MISSING if cell is None else cell["sweep_ce"][row] - whole

    values = [[value(length, first) for first in firsts] for length in lengths]
    texts = [
        [str(length), *(_text(found, (length, first) in best) for first, found in zip(firsts, line, strict=True))]
        for length, line in zip(lengths, values, strict=True)
    ]
    title = (
        f"{report['models']['a']}: this many blocks (down) {kind} from this block on (across), {ROWS[row].replace('`', '')}: "
        "cross-entropy above the whole model on the sweep split, nats per token"
    )
    return title, ["n \\ first", *map(str, firsts)], texts, values


def _text(value: float, best: bool) -> str:
    return "" if value != value else f"{value:+.2f}" + ("*" if best else " ")


def best_in(report: dict, kind: str, row: str) -> list[dict]:
    """The best range of each length in a row, by the sweep split."""
    return [one for one in report["best"] if one["change"] == kind and row in one["best_in"]]


def best_table(report: dict) -> tuple[list[str], list[list[str]], str]:
    """Header, rows and title of the best range of each length in each row, on the report split."""
    lines = []
    for kind in kinds(report):
        for row in rows(report):
            for one in best_in(report, kind, row):
                found = next(item for item in one["rows"] if item["name"] == row)
                null = difference(found["null_minus"]) if "null_minus" in found else ""
                which = f"{'block' if one['length'] == 1 else 'blocks'} {blocks(one)}"
                label = f"{which} {kind}, {'as it is' if row == 'passthrough' else row}"
                lines.append([label, str(one["blocks"]), f"{found['ce']:.3f}", difference(found["minus_whole"]), null])
    header = ["", "blocks left", "CE", "− whole model", "elsewhere − here"]
    return header, lines, f"Best range of each length; {report['tokens']['report']:,} held-out tokens"


def blocks(one: dict) -> str:
    """The range's blocks: "4" or "4 to 6"."""
    return str(one["first"]) + (f" to {one['first'] + one['length'] - 1}" if one["length"] > 1 else "")


def difference(found: dict) -> str:
    """A paired difference with its interval."""
    return f"{found['ce']:+.3f} ({found['ce_low']:+.3f} to {found['ce_high']:+.3f})"


def footnotes(report: dict) -> list[str]:
    """The sentences below the tables."""
    whole, tokens = report["whole"], report["tokens"]
    notes = [
        f"Whole model: {report['depth']} blocks, cross-entropy {whole['ce']:.3f}, interval {whole['ce_low']:.3f} – "
        f"{whole['ce_high']:.3f}.",
        f"Ranges are compared on {tokens['sweep']:,} tokens of the sweep split; the best are scored on {tokens['report']:,} "
        f"others{phrase(report)}. Differences are paired, with 95 % intervals over documents.",
        *origin_notes(report),
        *text_notes(report),
        *warning(report),
        "elsewhere: the mean of a few other ranges of the same length, treated in the same way.",
    ]
    if len(rows(report)) > 1:
        notes.append(
            f"Bridges are fitted on {tokens['fit']:,} tokens. `stitch join --native` writes the model of any range."
        )
    else:
        notes.append("Nothing is refitted: so many neurons need more than `memory`, or blocks depend on their number.")
    return notes
