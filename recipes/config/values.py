"""Convert the text of YAML files and overrides to the types of the schema, and check each value against its rule.

Every value is read as the text that the user typed. YAML would guess a type: `2026_11_27` would be a number, `1:30`
would be 90, `yes` would be true. Here the schema gives the type; only `null` is taken from YAML.
"""

from __future__ import annotations

import difflib
import json
import re
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Annotated, Any, ClassVar, Union, get_args, get_origin, get_type_hints

import yaml

from data_prep.common.bounds import YAML_CHARACTERS, YAML_DEPTH, YAML_VALUES
from data_prep.common.errors import BadInput
from data_prep.common.limits import OneOf, Rule
from recipes.config.schema import MIX_NAME

SWITCH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
NULL = ("null", "~", "")
_OTHER_KEY = re.compile(r"\$\{\.*[A-Za-z_]\w*(?:\.\w+|\[\w+\])*\}")  # ${run_name}, ${model.n_embd}, ${.n_head}
_MEANT = ("tag:yaml.org,2002:null", "tag:yaml.org,2002:merge")


class _TextLoader(yaml.SafeLoader):
    """Reads each scalar as the text that was typed."""

    yaml_implicit_resolvers: ClassVar = {
        first: [resolver for resolver in resolvers if resolver[0] in _MEANT]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Raises ConstructorError on a key that comes twice; YAML itself would silently take the last one."""
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := next((key for key in keys if keys.count(key) > 1), None):
            raise yaml.constructor.ConstructorError(problem=f"duplicate key {twice}", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str) -> Any:
    """Parse YAML to mappings, lists, texts and None.

    Raises:
        YAMLError: the text is not YAML, a key comes twice, or the text is too long, too deeply nested or, with its
            aliases written out, has too many values.
    """
    if len(text) > YAML_CHARACTERS:
        raise yaml.YAMLError(f"it has more than {YAML_CHARACTERS:,} characters")
    try:
        value = yaml.load(text, _TextLoader)
    except (RecursionError, ValueError) as error:
        raise yaml.YAMLError(f"it cannot be read ({str(error)[:100]})") from None
    left, count = [(value, 1)], 0
    while left:
        inner, depth = left.pop()
        count += 1
        if depth > YAML_DEPTH or count > YAML_VALUES:
            raise yaml.YAMLError(
                f"it is more than {YAML_DEPTH} lists and mappings deep, or has more than {YAML_VALUES:,} values"
            )
        if isinstance(inner, (dict, list)):
            left += ((one, depth + 1) for one in (inner.values() if isinstance(inner, dict) else inner))
    return value


def parse_override(text: str) -> Any:
    """Parse the value of `key=value`: lists, mappings, quoted text and null as YAML, anything else as text.

    Raises:
        YAMLError: the value starts with a bracket, a brace or a quote, but is not valid YAML.
    """
    text = text.strip()
    return parse_yaml(text) if text[:1] in ("[", "{", '"', "'") or text.lower() in NULL else text


def write_override(key: str, value: Any) -> str:
    """Return `key=value` in a form that `parse_override` reads back."""
    plain = isinstance(value, str) and value[:1] not in ("[", "{", '"', "'") and value.strip() == value
    return f"{key}={value if plain and value.lower() not in NULL else json.dumps(value)}"


class Hint:
    """Type and rule that the schema gives to a key.

    Attributes:
        type: type of the value.
        rule: which values are allowed; None for a section and for a switch.
        nullable: whether the value may be null.
    """

    def __init__(self, annotation: Any) -> None:
        self.nullable = get_origin(annotation) in (Union, types.UnionType)
        if self.nullable:
            (annotation,) = (part for part in get_args(annotation) if part is not type(None))
        self.rule: Rule | None = None
        if get_origin(annotation) is Annotated:
            annotation, self.rule = get_args(annotation)
        self.type: Any = annotation

    @property
    def items(self) -> Hint | None:
        """Hint of the values of a list; None if the key is not a list."""
        return Hint(get_args(self.type)[0]) if get_origin(self.type) is list else None

    @property
    def named(self) -> type | None:
        """Section under each name of a mapping; None if the key is not a mapping."""
        return get_args(self.type)[1] if get_origin(self.type) is dict else None

    def refuse(self, key: str, value: object) -> BadInput:
        """Return the error for a value that is not allowed."""
        rule = self.rule or OneOf(("true", "false"))
        error = str(rule.refuse(key, value))
        return BadInput(error + (", or null" if self.nullable else ""))


@cache
def hints_of(section: type) -> dict[str, Hint]:
    """Return the hint of each key of a section."""
    hints = get_type_hints(section, include_extras=True)
    return {one.name: Hint(hints[one.name]) for one in fields(section)}


def read_section(given: Any, section: type, prefix: str = "") -> dict[str, Any]:
    """Convert a section of a YAML file or override to the types of the schema.

    Args:
        given: section as `parse_yaml` returns it.
        section: dataclass of the section.
        prefix: prefix of the keys in messages, such as `model.`.

    Raises:
        BadInput: the value is not a section, a key is unknown, or a value has the wrong type or is not allowed.
    """
    hints = hints_of(section)
    if not isinstance(given, Mapping):
        keys = ", ".join(f"{prefix}{key}" for key in hints) or "no keys; write {}"
        raise BadInput(f"{prefix[:-1]} = {'null' if given is None else repr(given)}, but it is a section: {keys}")
    values = {}
    for name, value in given.items():
        if name not in hints:
            near = difflib.get_close_matches(str(name), hints, n=1, cutoff=0.5)
            known = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(hints) or 'nothing'}"
            raise BadInput(f"unknown key '{prefix}{name}'; {known}")
        values[name] = _read(value, hints[name], f"{prefix}{name}")
    return values


def _read(value: Any, hint: Hint, key: str) -> Any:
    if isinstance(value, str) and "${" in value:
        _refuse_resolvers(value, key)
        return value  # OmegaConf fills in the value of the other key; `check_section` then checks it
    if value == "???":  # OmegaConf's mark of a missing value
        raise hint.refuse(key, value)
    if value is None and hint.nullable:
        return None
    if isinstance(hint.type, type) and is_dataclass(hint.type):
        return read_section(value, hint.type, f"{key}.")
    if hint.named:
        return _read_named(value, hint.named, key)
    if hint.items:
        if not isinstance(value, list):
            raise BadInput(f"{hint.refuse(key, value)}: write {key}=[…, …]")
        read = [_read(one, hint.items, f"{key}[{n}]") for n, one in enumerate(value)]
    elif not isinstance(value, str):
        raise hint.refuse(key, value)
    elif hint.rule is None:
        read = SWITCH.get(value.lower())
        if read is None:
            raise hint.refuse(key, value)
        return read
    else:
        try:
            read = hint.rule.read(value)
        except ValueError:
            raise hint.refuse(key, value) from None
    _check(read, hint, key)
    return read


def _read_named(given: Any, section: type, key: str) -> dict[str, Any]:
    """Read a mapping of names to sections."""
    if not isinstance(given, Mapping) or not given:
        keys = ", ".join(hints_of(section))
        raise BadInput(f"{key} = {given!r}, but it holds sections by names of your own: {key}.NAME, each with {keys}")
    for name in given:
        MIX_NAME.check(f"{key}: the name", str(name))
    return {name: read_section(value, section, f"{key}.{name}.") for name, value in given.items()}


def _refuse_resolvers(text: str, key: str) -> None:
    """Refuse every `${…}` except one that names another key.

    OmegaConf's resolvers do more. With `${oc.env:X}`, a configuration file that somebody else wrote could copy
    variables of the environment into folder names, into records and to W&B.
    """
    if "${" in _OTHER_KEY.sub("", text):
        raise BadInput(
            f"{key} = {text!r}, but ${{…}} may only name another key, as in ${{run_name}}; it cannot read the "
            f"environment. Set the key on the command line, where the shell fills in variables: {key}=$NAME"
        )


def _check(value: Any, hint: Hint, key: str) -> None:
    if hint.rule is not None and value is not None and not _open(value) and not hint.rule.admits(value):
        raise hint.refuse(key, value)


def _open(value: Any) -> bool:
    """Whether a list contains a reference to another key, so that it cannot be checked yet."""
    return isinstance(value, list) and any(isinstance(one, str) and "${" in one for one in value)


def nested(key: str, value: Any) -> dict[str, Any]:
    """Return the nested mapping that a YAML would hold for `a.b = value`."""
    for name in reversed(key.split(".")):
        value = {name: value}
    return value


def read_value(key: str, value: Any, schema: type) -> Any:
    """Convert the value of a key `a.b`, as `parse_yaml` returns it, to the type of the schema.

    Raises:
        BadInput: as in `read_section`.
    """
    read: Any = read_section(nested(key, value), schema)
    for name in key.split("."):
        read = read[name]
    return read


def check_section(section: Any, prefix: str = "") -> None:
    """Check all values of a configuration, also defaults and values that were filled in from another key.

    Raises:
        BadInput: the schema does not allow a value.
    """
    for name, hint in hints_of(type(section)).items():
        value, key = getattr(section, name), f"{prefix}{name}"
        if is_dataclass(value):
            check_section(value, f"{key}.")
        elif hint.named:
            for one, of_it in (value or {}).items():
                check_section(of_it, f"{key}.{one}.")
        elif value is not None:
            _check(value, hint, key)
            for n, one in enumerate(value if hint.items else ()):
                _check(one, hint.items or hint, f"{key}[{n}]")
