class MatchError(Exception):
    """Two feature sets cannot be matched. One line: what is needed, what was got, what to do."""

    exit_code = 1
