"""What people read of a transfer: the table of its rows and the notes below it."""

from collections.abc import Callable

from stitch.evaluation.documents import phrase, warning
from stitch.report.across import IN_BITS, differences
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


# Columns by kind: head, key of the row, how it is shown. Across tokenizers bits per byte are shown in place of nats per token.
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
    columns = [_in_bits(column) if "across" in report else column for column in COLUMNS[report["kind"]]]
    rows = [[_label(row["name"], report), *(show(row, key) for _, key, show in columns)] for row in report["results"]]
    return ["", *(head for head, _, _ in columns)], rows, title(report)


def _in_bits(column: tuple) -> tuple:
    head, key, show = column
    return ("bits/byte" if head == "CE" else head), IN_BITS.get(key, key), show


def _label(name: str, report: dict) -> str:
    if name in ("a", "b"):
        return f"{name}: {report['models'][name]}"
    return f"{name} (written)" if name == report["chosen"] else name


def title(report: dict) -> str:
    models, site = report["models"], report["site"]
    what = {"sae": "SAE", "probe": "probe", "vector": "steering vectors"}[report["kind"]]
    carried = f"{what} of {models['a']} at resid_pre.{site['a']}, carried to {models['b']} at resid_pre.{site['b']}"
    if report["kind"] == "probe":
        return f"{carried}; {report['scored_tokens']:,} tokens{phrase(report)}, balanced accuracy"
    unit = "bits per byte" if "across" in report else "nats per token"
    return f"{carried}; {report['tokens']['report']:,} held-out tokens{phrase(report)}, {unit}"


def notes(report: dict) -> list[str]:
    """The sentences below the table."""
    errors = report["unexplained"]["transferred"]
    lines = [
        f"The map leaves a share of {errors['there']:.3f} of the variance of B's stream unexplained, the map back "
        f"{errors['back']:.3f} of A's.",
        *_across(report),
        *text_notes(report),
    ]
    if report["kind"] == "sae":
        lines += sae_notes(report)
        if needed := report.get("memory_to_refit"):
            lines.append(
                f"Neither encoder nor decoder was refitted, which would make a far better SAE: for {report['features']:,} "
                f"features that takes a `memory` of {-(-needed // 2**30)}G."
            )
        lines.append(
            f"{report['matched']:,} of {report['features']:,} features of A match one of the SAE trained on B better than its "
            "null. Same contexts: the share of A's features half of whose ten strongest tokens are the same in B."
        )
        lines += differences(report)
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
            f"Vectors: {report['vectors']:,}, each added at every token times {report['strength']:g} (strength). Effect: "
            "correlation over the vocabulary of the mean change of log probabilities with that in A. Size: ratio of their "
            "standard deviations."
        )
    return [*lines, *warning(report)]


def _across(report: dict) -> list[str]:
    """What is different where both models read different tokens; nothing where they read the same."""
    if not (found := report.get("across")):
        return []
    a, b, sizes, lost = report["models"]["a"], report["models"]["b"], found["bytes_per_token"], found["lost"]
    pairs, shared = found["pairs"], found["shared"]
    own = (
        f"Rows of {a} read its own tokens, all others those of {b}, of the same documents. Predictions of special tokens do not "
        "count."
    )
    said = {
        "sae": f"{own} Features are matched, and contexts compared, where tokens of both end: {pairs['report']:,} held-out "
        "places.",
        "probe": _probe(report, pairs["report"]),
        "vector": f"{own} Effects are means over each model's tokens, compared over the {shared:,} of its vocabulary that stand "
        "for the same bytes in both.",
    }
    return [
        f"{a} and {b} read different tokens, of {sizes['a']:.2f} and {sizes['b']:.2f} bytes. {found['coinciding']:.1%} of those "
        f"of {b} end where one of {a} does: the maps are fitted there, at {pairs['fit']:,} places. The tokenizers lose "
        f"{lost['a']:.2%} and {lost['b']:.2%} of the bytes.",
        said[report["kind"]],
    ]


def _probe(report: dict, pairs: int) -> str:
    if "trained_on" in report:
        return "Probes of A are scored on A's tokens, all others on B's; a token of either has the label of its last character."
    return f"Predictions are compared where tokens of both end: {pairs:,} held-out places."
