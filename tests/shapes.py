"""Shape checks while tests run: beartype, on functions and classes whose annotations name a shape.

jaxtyping's hook decorates everything that a module defines, and decorates nested functions again on every call: in the
tests of chains, half of all Python calls came from it. Types without shapes are checked by pyright instead. Its decorator
of functions checks all arguments again with each result; the one here checks them once, and of a function that a test calls
thousands of times not every call.
"""

import ast
import functools
import inspect
from collections import Counter

import jaxtyping
from beartype import BeartypeConf
from beartype import beartype as plain
from jaxtyping import _import_hook
from jaxtyping._storage import pop_shape_memo, push_shape_memo

ALWAYS, THEN_EVERY = 32, 16  # of a function: its first calls in a test are all checked, then one of so many

calls: Counter = Counter()  # of each function, in the test that runs

_beartype = plain(conf=BeartypeConf(violation_type=jaxtyping.TypeCheckError))


def checked(function):
    """Names of axes have one size in all arguments and the result of a call."""
    if inspect.isgeneratorfunction(function):  # runs later than its call
        return jaxtyping.jaxtyped(function, typechecker=_beartype)
    inner = _beartype(function)

    @functools.wraps(function)
    def call(*args, **kwargs):
        calls[function.__code__] += 1
        if calls[function.__code__] > ALWAYS and calls[function.__code__] % THEN_EVERY:
            return function(*args, **kwargs)
        push_shape_memo({})
        try:
            return inner(*args, **kwargs)
        finally:
            pop_shape_memo()

    return call


class _OfShapes(_import_hook.JaxtypingTransformer):
    def visit_FunctionDef(self, node: ast.FunctionDef):  # noqa: N802 (name given by ast.NodeTransformer)
        arguments = [part.annotation for part in ast.walk(node.args) if isinstance(part, ast.arg)]
        return self._visit(node, [*arguments, node.returns], self._decorated)

    def _decorated(self, node: ast.FunctionDef):
        node = super().visit_FunctionDef(node)
        jaxtyped = node.decorator_list[-1]
        assert isinstance(jaxtyped, ast.Call)
        node.decorator_list[-1] = jaxtyped.keywords[0].value  # `checked` itself
        return node

    def visit_ClassDef(self, node: ast.ClassDef):  # noqa: N802
        fields = [part.annotation for part in node.body if isinstance(part, ast.AnnAssign)]
        return self._visit(node, fields, super().visit_ClassDef)

    def _visit(self, node, annotations: list, decorated):
        if any(_names_a_shape(part) for annotation in annotations if annotation for part in ast.walk(annotation)):
            return decorated(node)
        return self.generic_visit(node)


def _names_a_shape(part: ast.AST) -> bool:
    name = part.value.id if isinstance(part, ast.Subscript) and isinstance(part.value, ast.Name) else ""
    found = getattr(jaxtyping, name, None)
    return isinstance(found, type) and issubclass(found, jaxtyping.AbstractDtype)


_import_hook.JaxtypingTransformer = _OfShapes
