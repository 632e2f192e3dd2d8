"""The command line: the only room that knows typer and rich. A command parses, makes one library call, and prints the report.

Its files are imported whenever `stitch` starts, so nothing heavy is imported here outside functions.
"""
