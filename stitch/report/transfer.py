"""What people read of a transfer: the table of its rows and the notes below it."""

from collections.abc import Callable

from stitch.evaluation.documents import phrase, warning
from stitch.report.notes import sae_notes, text_notes

Table = tuple[list[str], list[list[str]], str]


def _number(form: str) -> Callable[[dict, str], str]:
    return lambda row, key: "" if row.get(key) is None else format(row[key], form)


def _interval(form: str) -> Callable[[dict, str], str]:
    def shown(row: dict, key: str) -> str:
        if row.get(f"{key}_low") is None:
            return ""
        return f"{row[f'{key}_low']:{form}} – {row[f'{key}_high']:{form}}"

    return shown


# Columns by kind: head, key of the row, how it is shown.
COLUMNS = {
    "sae": [
        ("FVU", "fvu", _number(".3f")), ("L0", "l0", _number(".1f")), ("CE", "ce", _number(".3f")),
        ("95 % interval", "ce", _interval(".3f")), ("same contexts", "agree", _number(".1%")), ("dead", "dead", _number(".1%")),
    ],
    "probe": [("accuracy", "accuracy", _number(".1%")), ("95 % interval", "accuracy", _interval(".1%"))],
    "vector": [
        ("effect", "effect", _number(".3f")), ("95 % interval", "effect", _interval(".3f")), ("size", "size", _number(".2f")),
        ("95 % interval", "size", _interval(".2f")), ("CE", "ce", _number(".3f")),
        ("above unsteered", "side", _number("+.3f")), ("95 % interval", "side", _interval("+.3f")),
    ],
}  # fmt: skip


def table(report: dict) -> Table:
    """Header, rows and title."""
    columns = COLUMNS[report["kind"]]
    rows = [[_label(row["name"], report), *(show(row, key) for _, key, show in columns)] for row in report["results"]]
    return ["", *(head for head, _, _ in columns)], rows, title(report)


def _label(name: str, report: dict) -> str:
    if name in ("a", "b"):
        return f"{name}: {report['models'][name]}"
    return f"{name} (written)" if name == report["chosen"] else name


def title(report: dict) -> str:
    models, site = report["models"], report["site"]
    what = {"sae": "SAE", "probe": "probe", "vector": "steering vectors"}[report["kind"]]
    carried = f"{what} of {models['a']} at resid_pre.{site['a']}, carried to {models['b']} at resid_pre.{site['b']}"
    if report["kind"] == "probe":
        return f"{carried}; {report['scored_tokens']:,} tokens of {report['scored_documents']:,} documents, balanced accuracy"
    return f"{carried}; {report['tokens']['report']:,} held-out tokens{phrase(report)}, nats per token"


def notes(report: dict) -> list[str]:
    """The sentences below the table."""
    errors = report["unexplained"]["transferred"]
    lines = [
        f"The map leaves a share of {errors['there']:.3f} of the variance of B's stream unexplained, the map back "
        f"{errors['back']:.3f} of A's.",
        *text_notes(report),
    ]
    if report["kind"] == "sae":
        lines += sae_notes(report)
        lines.append(
            f"{report['matched']:,} of {report['features']:,} features of A match one of the SAE trained on B better than its "
            "null. Same contexts: the share of A's features half of whose ten strongest tokens are the same in B."
        )
        lines += [
            f"{one['name']} − {one['minus']}: {one['ce']:+.3f} nats ({one['ce_low']:+.3f} to {one['ce_high']:+.3f}, paired)."
            for one in report["differences"]
        ]
    if report["kind"] == "probe":
        shares = ", ".join(f"{share:.1%}" for share in report["shares"])
        lines.append(
            f"Right is {report['truth']}; the classes have shares of {shares}. Always giving one class scores "
            f"{report['chance']:.1%}."
        )
        if "trained_on" in report:
            lines.append(f"Trained probes saw {report['trained_on']:,} labelled tokens of other texts.")
    if report["kind"] == "vector":
        lines.append(
            f"{report['vectors']:,} vector(s), added {report['strength']:g} times at every token. Effect: correlation over the "
            "vocabulary of the mean change of log probabilities with that in A. Size: ratio of their standard deviations."
        )
    return [*lines, *warning(report)]
