"""What a Jinja template shows: every field, by the path from what it is rendered with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, nodes

from project import ROOT

SHOWN = "!"  # marks, within this file, a path that stands between {{ and }} itself
METHODS = {"items", "keys", "values", "get", "format"}  # called on a field, and no field


def template_fields(template: Path) -> set[str]:
    """Paths such as `run.plan.batches`, `*` for each of a list or mapping; those of templates it includes, too.

    A path that another one goes on from (`run`, where `run.plan` is shown) counts where it is shown itself.
    """
    found: set[str] = set()
    _visit(Environment().parse(template.read_text(encoding="utf-8")), {}, found)
    shown = {path.removesuffix(SHOWN) for path in found if path.endswith(SHOWN)}
    found = {path for path in found if not path.endswith(SHOWN)}
    return shown | {path for path in found if not any(other.startswith(f"{path}.") for other in found)}


def _path(node: Any, scope: dict[str, str | None]) -> str | None:
    """Where an expression comes from, if it is a name and what hangs on it."""
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
        case nodes.Getitem():  # a slice, or one of a list
            return _path(node.node, scope)
        case nodes.Call(node=nodes.Getattr(attr="get")):
            base = _path(node.node, scope)
            return base and f"{base}.*"
        case nodes.Call() | nodes.Filter():
            return _path(node.node, scope)
    return None


def _visit(node: Any, scope: dict[str, str | None], found: set[str]) -> None:
    match node:
        case nodes.For():
            _visit(node.iter, scope, found)
            inner = {**scope, "loop": None}
            _bind(node.target, node.iter, inner)
            for child in (*node.body, *node.else_):
                _visit(child, inner, found)
        case nodes.Assign():
            _visit(node.node, scope, found)
            values: list[Any] = node.node.items if isinstance(node.node, nodes.Tuple) else [node.node]
            targets: list[Any] = node.target.items if isinstance(node.target, nodes.Tuple) else [node.target]
            for target, value in zip(targets, values, strict=True):
                scope[target.name] = _path(value, scope)
        case nodes.Output():
            for child in node.nodes:
                for part in (child.expr1, child.expr2) if isinstance(child, nodes.CondExpr) else (child,):
                    whole = isinstance(part, nodes.Filter) and part.name in ("tojson", "safe")
                    path = _path(part, scope) if whole or isinstance(part, nodes.Name | nodes.Getattr) else None
                    found |= {f"{path}{SHOWN}"} if path else set()
                _visit(child, scope, found)
        case nodes.Include(template=nodes.Const(value=name)):
            (path,) = (ROOT / "recipes").rglob(name)
            _visit(Environment().parse(path.read_text(encoding="utf-8")), dict(scope), found)
        case nodes.Name() | nodes.Getattr() | nodes.Getitem():
            path = _path(node, scope)
            if path:
                found.add(path)
            else:
                for child in node.iter_child_nodes():
                    _visit(child, scope, found)
            if isinstance(node, nodes.Getitem):
                _visit(node.arg, scope, found)
        case nodes.Call(node=nodes.Getattr(node=on) as method):
            _visit(method if _path(node, scope) is None else on, scope, found)
            if path := _path(node, scope):
                found.add(path)
            for child in node.args:
                _visit(child, scope, found)
        case nodes.Filter(name="map"):
            base = _path(node.node, scope)
            found |= {f"{base}.*.{word.value.as_const()}" for word in node.kwargs if word.key == "attribute"}
        case _:
            for child in node.iter_child_nodes():
                _visit(child, scope, found)


def _bind(target: Any, iterated: Any, scope: dict[str, str | None]) -> None:
    """What the variables of a loop stand for: keys and values of a mapping, or each of a list."""
    base = _path(iterated, scope)
    if isinstance(target, nodes.Tuple):
        names: list[Any] = target.items
        for name, part in zip(names, ("key", "*"), strict=True):
            scope[name.name] = base and f"{base}.{part}"
    else:
        scope[target.name] = base and f"{base}.*"
