"""The table of models scored on tasks of lm-eval."""

BETTER = {True: "higher", False: "lower", None: ""}


def table(report: dict) -> tuple[list[str], list[list[str]], str]:
    """Header, rows and title: a row per task and metric, a column per model."""
    models = report["models"]
    rows = [
        [
            row["name"],
            _count(row["documents"]),
            BETTER[row["higher_is_better"]],
            *(_score(row, role) for role in models),
        ]
        for row in report["results"]
    ]
    named = ", ".join(f"{role} {name}" for role, name in models.items())
    library = report["provenance"]["versions"]["lm-eval"]
    return ["", "documents", "better", *models], rows, f"{named}; tasks of lm-eval {library}, ± standard error"


def _count(documents: int | None) -> str:
    return "" if documents is None else f"{documents:,}"


def _score(row: dict, role: str) -> str:
    value, error = row[role], row[f"{role}_stderr"]
    if value is None:
        return ""
    return f"{value:.4g}" if error is None else f"{value:.4g} ± {error:.2g}"
