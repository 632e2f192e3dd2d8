"""Checks of shapes while tests run: beartype, on the functions and classes whose annotations name one.

jaxtyping's hook decorates all that a module defines, and what is nested in a function again whenever that is called: in the
tests of chains half of all Python calls were its own. Types without a shape are left to pyright.
"""

import ast

import jaxtyping
from beartype import beartype  # noqa: F401 (the hook finds it here)
from jaxtyping import _import_hook


class _OfShapes(_import_hook.JaxtypingTransformer):
    def visit_FunctionDef(self, node: ast.FunctionDef):  # noqa: N802 (as all of its kind)
        arguments = [part.annotation for part in ast.walk(node.args) if isinstance(part, ast.arg)]
        return self._visit(node, [*arguments, node.returns], super().visit_FunctionDef)

    def visit_ClassDef(self, node: ast.ClassDef):  # noqa: N802
        fields = [part.annotation for part in node.body if isinstance(part, ast.AnnAssign)]
        return self._visit(node, fields, super().visit_ClassDef)

    def _visit(self, node, annotations: list, checked):
        if any(_names_a_shape(part) for annotation in annotations if annotation for part in ast.walk(annotation)):
            return checked(node)
        return self.generic_visit(node)


def _names_a_shape(part: ast.AST) -> bool:
    name = part.value.id if isinstance(part, ast.Subscript) and isinstance(part.value, ast.Name) else ""
    found = getattr(jaxtyping, name, None)
    return isinstance(found, type) and issubclass(found, jaxtyping.AbstractDtype)


_import_hook.JaxtypingTransformer = _OfShapes
