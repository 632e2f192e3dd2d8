"""The public functions of `stitch`: one per command, with the same names and defaults. `import stitch` leads here."""
