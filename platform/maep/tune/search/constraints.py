"""Constraints of a space: comparisons such as `width % num_heads == 0`, evaluated by a small grammar.

It has numbers, strings, lists, (dotted) names, + - * / // %, comparisons, `in`, and, or, not. Configuration text is
never evaluated as Python.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

from maep.errors import ConfigError, nearest

_BINARY: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}


def holds(text: str, names: Mapping[str, Any]) -> bool:
    """Whether constraint `text` is true for the values in `names`. Raises ConfigError where it cannot be evaluated."""
    try:
        tree = ast.parse(text, mode="eval").body
    except SyntaxError:
        raise ConfigError(f"constraints: {text!r} is not a comparison such as width % 8 == 0") from None
    try:
        return bool(_value(tree, names, text))
    except (TypeError, ZeroDivisionError) as error:
        raise ConfigError(f"constraints: {text!r} cannot be evaluated: {error}") from None


def _value(node: ast.expr, names: Mapping[str, Any], text: str) -> Any:
    def inner(part: ast.expr) -> Any:
        return _value(part, names, text)

    match node:
        case ast.Constant(value=int() | float() | str() | None as value):
            return value
        case ast.Name() | ast.Attribute():
            name = ast.unparse(node)
            if name not in names:
                raise ConfigError(f"constraints: {text!r} names {name}: {nearest(name, names)}")
            return names[name]
        case ast.List(elts=elements) | ast.Tuple(elts=elements):
            return [inner(element) for element in elements]
        case ast.UnaryOp(op=ast.Not()):
            return not inner(node.operand)
        case ast.UnaryOp(op=ast.USub()):
            return -inner(node.operand)
        case ast.BoolOp(op=ast.And(), values=parts):
            return all(inner(part) for part in parts)
        case ast.BoolOp(op=ast.Or(), values=parts):
            return any(inner(part) for part in parts)
        case ast.BinOp(op=op) if type(op) in _BINARY:
            return _BINARY[type(op)](inner(node.left), inner(node.right))
        case ast.Compare(ops=ops) if all(type(op) in _BINARY for op in ops):
            values = [inner(part) for part in (node.left, *node.comparators)]
            pairs = zip(ops, values[:-1], values[1:], strict=True)
            return all(_BINARY[type(op)](left, right) for op, left, right in pairs)
    raise ConfigError(f"constraints: {text!r} has {ast.unparse(node)!r}, which is not supported: write comparisons")
