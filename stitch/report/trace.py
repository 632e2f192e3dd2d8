"""What people read of a trace: a sentence, the table of relearning curves, and notes."""

SHOWN = (0, 1, 2, 4, 8)  # steps


def lead(report: dict) -> str:
    """Whether there is a trace, and how large."""
    row = report["results"][0]
    name, document = report["models"]["a"], report["document"]["name"]
    size = f"{row['savings']:+.3f} nats · steps ({row['savings_low']:+.3f} to {row['savings_high']:+.3f})"
    if row["savings_high"] < 0 and (other := report["models"]["b"]) is not None:
        why = f"it was pushed away, or {other} has seen it"
        return f"{name} is behind {other} in learning {document}: savings of {size}; {why}."
    if row["savings_low"] <= 0:
        return f"No trace of {document} is found in {name}: savings of {size}."
    if report["models"]["b"] is None:
        return f"{name} learns {document} faster than the controls, by {size}: a trace of it, or another kind of text."
    return f"{name} holds a trace of {document}: savings of {size}."


def table(report: dict) -> tuple[list[str], list[list[str]], str]:
    """Header, rows and title of the table."""
    header = ["", *(f"step {step}" for step in SHOWN), "savings", "95 % interval", "other text"]
    title = (
        f"{report['models']['a']} learns {report['document']['name']} ({report['document']['tokens']:,} tokens) in "
        f"{report['steps']} steps of AdamW at rate {report['rate']:g}; {report['controls']} control documents, nats per token"
    )
    return header, [_cells(row) for row in report["results"]], title


def _cells(row: dict) -> list[str]:
    interval = f"{row['savings_low']:+.3f} – {row['savings_high']:+.3f}" if "savings" in row else ""
    return [
        row["name"],
        *(f"{row['curve'][step]:.3f}" for step in SHOWN),
        f"{row['savings']:+.3f}" if "savings" in row else "",
        interval,
        f"{row['cost']:+.4f}" if "cost" in row else "",
    ]


def footnotes(report: dict) -> list[str]:
    """The sentences below the table."""
    row, other = report["results"][0], report["models"]["b"]
    if other is None:
        meaning = (
            "Savings: the area between a curve and its own start, less the mean of the controls, in nats · steps. Documents "
            "differ in how fast they are learned: only a comparison with a model that never saw this one (`against`) tells a "
            "trace from a kind of text that the controls are not."
        )
    else:
        meaning = (
            f"Savings: the area between the curves of {other} and of the model, less the mean of the controls, in nats · steps: "
            f"{row['at_start']:+.3f} for what is known before the first step, {row['savings'] - row['at_start']:+.3f} for how "
            "fast the rest is learned."
        )
    return [
        meaning,
        "The interval is that of a document like the controls. 'other text' is what the training costs on the report split.",
    ]
