"""Classes of donors whose code is no part of transformers, by the names that `auto_map` in their configs gives them.

Here there are none. A composite of donors that bring code has another file of this name, which imports their classes from files
beside it; these begin with `donor_` and a hash of the code, so a name stands for the same class in every composite.
"""

CLASSES: dict[str, type] = {}
