"""What a terminal shows of a certificate."""

Table = tuple[list[str], list[list[str]], str]


def title(report: dict) -> str:
    """What was compiled, in a line."""
    said = report["description"]
    what = {"automaton": _automaton, "machine": _machine}[said["kind"]](said)
    return (
        f"{what}: {said['arch']}, {report['blocks']} block{'s' if report['blocks'] > 1 else ''}, {report['parameters']:,} parameters, "
        f"context {report['context']:,}"
    )


def _automaton(said: dict) -> str:
    states, symbols = len(said["automaton"]["states"]), len(said["automaton"]["symbols"])
    return f"{said['source']} ({states} states, {symbols} symbols), {said['mode']} to length {said['length']:,}"


def _machine(said: dict) -> str:
    return f"universal Turing machine, window of {said['window']} cells"


def table(report: dict) -> Table:
    rows = [
        [
            f"{row['dtype']}, {row['attention']}",
            row["trial"],
            f"{row['prompts']:,}",
            f"{row['asked']:,}",
            f"{row['wrong']:,}",
            f"{row['margin']:.4f}",
            f"{row['margin'] / report['ideal']:.1%}",
        ]
        for row in report["results"]
    ]
    return ["", "tried on", "prompts", "answers", "wrong", "smallest margin", "of ideal"], rows, title(report)


def notes(report: dict) -> list[str]:
    off = ", ".join(f"{name} {value:.1e}" for name, value in report["off_mass"].items())
    return [
        f"Attention of heads by position beside their token, at most: {off}.",
        f"{'Certified' if report['certified'] else 'NOT certified'}: smallest margin {report['margin']:.3f}; without any error it would "
        f"be {report['ideal']:.3f}.",
    ]
