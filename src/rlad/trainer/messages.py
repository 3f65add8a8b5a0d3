"""Sentences about what is wrong in a recipe: the dotted key, what is allowed, and the nearest match."""

from __future__ import annotations

import difflib
import math
import types
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

MANY = 20  # more allowed keys than this are not listed: the closest ones are


def close_to(word: Any, candidates: Iterable[str]) -> str:
    """ "; did you mean 'x'?" for the candidate nearest to `word`, or nothing where none is near."""
    close = difflib.get_close_matches(str(word), list(candidates), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def unknown_key(dotted: str, allowed: list[str], what: str = "allowed") -> str:
    """The sentence for a key that does not exist, with the allowed ones, or the closest where there are many."""
    prefix, _, last = dotted.rpartition(".")
    dot = f"{prefix}." if prefix else ""
    close = difflib.get_close_matches(last, allowed, n=4)
    nearest = f"; did you mean {dot}{close[0]}?" if close else ""
    if len(allowed) <= MANY:
        return f"{dotted}: unknown key{nearest} ({what}: {', '.join(allowed)})"
    listed = f", such as {', '.join(close[1:])}" if close[1:] else ""
    return f"{dotted}: unknown key{nearest} ({what}{listed})"


def type_problem(dotted: str, hint: Any, value: Any) -> list[str]:
    """The sentence for a value that is not of the type `hint`, or none where it is. Numbers must be finite."""
    choices = _choices(hint)
    if choices and isinstance(value, str):  # transformers writes `SaveStrategy | str` and takes the enum's values alone
        listed = f": one of {', '.join(choices)}" if len(choices) <= MANY else ""
        return [] if value in choices else [f"{dotted}: there is no {value!r}{listed}{close_to(value, choices)}"]
    adapter: TypeAdapter[Any] = TypeAdapter(hint) if _has_own_config(hint) else TypeAdapter(hint, config=_STRICT)
    try:
        adapter.validate_python(value, strict=True)
    except ValidationError:
        return [f"{dotted}: must be {_described(hint)}, not {value!r}{_yaml_hint(hint, value)}"]
    if isinstance(value, float) and not math.isfinite(value):
        return [f"{dotted}: must be a finite number, not {value!r}"]
    return []


def _choices(hint: Any) -> list[str]:
    """The values of the enumeration in `hint`, or none where there is none."""
    for each in (hint, *get_args(hint)):
        if isinstance(each, type) and issubclass(each, Enum):
            return [str(member.value) for member in each]
    return []


_STRICT = ConfigDict(arbitrary_types_allowed=True)


def _has_own_config(hint: Any) -> bool:
    """pydantic refuses a configuration for types that bring one: models, dataclasses and typed dictionaries."""
    return isinstance(hint, type) and (issubclass(hint, BaseModel) or hasattr(hint, "__dataclass_fields__"))


def _described(hint: Any) -> str:
    """A type in words: "int or null", "one of 'literal', 'anchor'"."""
    origin, choices = get_origin(hint), _choices(hint)
    if choices:
        return f"one of {', '.join(choices)}" if len(choices) <= MANY else "a text"
    if origin is Literal:
        return "one of " + ", ".join(repr(each) for each in get_args(hint))
    if origin in (Union, types.UnionType):
        return " or ".join(_described(each) for each in get_args(hint))
    if hint is None or hint is type(None):
        return "null"
    if origin is not None:
        return str(hint)
    return getattr(hint, "__name__", str(hint))


def _yaml_hint(hint: Any, value: Any) -> str:
    """What YAML did to the value, where that explains it."""
    wanted = _described(hint)
    if isinstance(value, bool) and ("str" in wanted or _choices(hint)):
        return " (YAML reads an unquoted yes, no, on or off as true or false: quote it)"
    if isinstance(value, str) and {"int", "float"} & set(wanted.split()) and _is_number(value):
        return " (leave the quotes away for a number)"
    return ""


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def model_problems(
    error: ValidationError, top: type[BaseModel], sections: Mapping[str, type[BaseModel]], prefix: str = ""
) -> list[str]:
    """Sentences for what pydantic found wrong in `top`, whose sub-models are `sections`; `prefix` goes before keys."""
    problems = []
    for each in error.errors():
        location = [str(part) for part in each["loc"]]
        dotted = prefix + ".".join(location)
        if each["type"] == "extra_forbidden":
            owner = sections[location[0]] if len(location) > 1 else top
            problems.append(unknown_key(dotted, list(owner.model_fields)))
        elif each["type"] == "missing":
            problems.append(f"{dotted}: is missing")
        else:
            message = each["msg"].removeprefix("Input ")
            problems.append(f"{dotted}: {message}, not {each['input']!r}")
    return problems
