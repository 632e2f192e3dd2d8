"""Shape checks while tests run: beartype, on functions and classes whose annotations name a shape.

jaxtyping's hook decorates everything that a module defines, and decorates nested functions again on every call: in the
tests of chains, half of all Python calls came from it. Types without shapes are checked by pyright instead.
"""

import ast

import jaxtyping
from beartype import beartype  # noqa: F401 (used by the hook)
from jaxtyping import _import_hook


class _OfShapes(_import_hook.JaxtypingTransformer):
    def visit_FunctionDef(self, node: ast.FunctionDef):  # noqa: N802 (name given by ast.NodeTransformer)
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
