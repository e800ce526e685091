"""The fields that a Jinja template shows, as paths from the variables with which it is rendered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, nodes

from project import ROOT

SHOWN = "!"  # marks a path that is itself printed between {{ and }}
METHODS = {"items", "keys", "values", "get", "format"}  # methods that are called on a field, and are not fields


def template_fields(template: Path) -> set[str]:
    """Paths such as `run.plan.batches`, with `*` for each item of a list or mapping; included templates are followed.

    A path that is the beginning of another (`run` of `run.plan`) counts only if the template prints it.
    """
    fields: set[str] = set()
    _visit(Environment().parse(template.read_text(encoding="utf-8")), {}, fields)
    shown = {path.removesuffix(SHOWN) for path in fields if path.endswith(SHOWN)}
    fields = {path for path in fields if not path.endswith(SHOWN)}
    return shown | {path for path in fields if not any(other.startswith(f"{path}.") for other in fields)}


def _path(node: Any, scope: dict[str, str | None]) -> str | None:
    """Path of an expression that is a name with attributes or items."""
    match node:
        case nodes.Name():
            return scope.get(node.name, node.name)
        case nodes.Getattr():
            base = _path(node.node, scope)
            return base and (base if node.attr in METHODS else f"{base}.{node.attr}")
        case nodes.Getitem(arg=nodes.Const(value=str(key))):
            base = _path(node.node, scope)
            return base and f"{base}.{key}"
        case nodes.Getitem(arg=nodes.Name() | nodes.Getattr()):
            base = _path(node.node, scope)
            return base and f"{base}.*"
        case nodes.Getitem():  # a slice, or an item of a list
            return _path(node.node, scope)
        case nodes.Call(node=nodes.Getattr(attr="get")):
            base = _path(node.node, scope)
            return base and f"{base}.*"
        case nodes.Call() | nodes.Filter():
            return _path(node.node, scope)
    return None


def _visit(node: Any, scope: dict[str, str | None], fields: set[str]) -> None:
    match node:
        case nodes.For():
            _visit(node.iter, scope, fields)
            inner = {**scope, "loop": None}
            _bind(node.target, node.iter, inner)
            for child in (*node.body, *node.else_):
                _visit(child, inner, fields)
        case nodes.Assign():
            _visit(node.node, scope, fields)
            values: list[Any] = node.node.items if isinstance(node.node, nodes.Tuple) else [node.node]
            targets: list[Any] = node.target.items if isinstance(node.target, nodes.Tuple) else [node.target]
            for target, value in zip(targets, values, strict=True):
                scope[target.name] = _path(value, scope)
        case nodes.Output():
            for child in node.nodes:
                for part in (child.expr1, child.expr2) if isinstance(child, nodes.CondExpr) else (child,):
                    whole = isinstance(part, nodes.Filter) and part.name in ("tojson", "safe")
                    path = _path(part, scope) if whole or isinstance(part, nodes.Name | nodes.Getattr) else None
                    fields |= {f"{path}{SHOWN}"} if path else set()
                _visit(child, scope, fields)
        case nodes.Include(template=nodes.Const(value=name)):
            (path,) = (ROOT / "recipes").rglob(name)
            _visit(Environment().parse(path.read_text(encoding="utf-8")), dict(scope), fields)
        case nodes.Name() | nodes.Getattr() | nodes.Getitem():
            path = _path(node, scope)
            if path:
                fields.add(path)
            else:
                for child in node.iter_child_nodes():
                    _visit(child, scope, fields)
            if isinstance(node, nodes.Getitem):
                _visit(node.arg, scope, fields)
        case nodes.Call(node=nodes.Getattr(node=on) as method):
            _visit(method if _path(node, scope) is None else on, scope, fields)
            if path := _path(node, scope):
                fields.add(path)
            for child in node.args:
                _visit(child, scope, fields)
        case nodes.Filter(name="map"):
            base = _path(node.node, scope)
            fields |= {f"{base}.*.{word.value.as_const()}" for word in node.kwargs if word.key == "attribute"}
        case _:
            for child in node.iter_child_nodes():
                _visit(child, scope, fields)


def _bind(target: Any, iterated: Any, scope: dict[str, str | None]) -> None:
    """Paths of the variables of a loop: keys and values of a mapping, or items of a list."""
    base = _path(iterated, scope)
    if isinstance(target, nodes.Tuple):
        names: list[Any] = target.items
        for name, part in zip(names, ("key", "*"), strict=True):
            scope[name.name] = base and f"{base}.{part}"
    else:
        scope[target.name] = base and f"{base}.*"
