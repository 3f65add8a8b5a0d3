"""The method that a recipe or a script says, checked: a name, a name with options, or a Method."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, Literal, get_origin, get_type_hints

from rlad.errors import RladError
from rlad.objectives import METHODS, Method
from rlad.trainer.messages import close_to, type_problem, unknown_key


def checked_method(data: Mapping[str, Any]) -> tuple[Method | None, list[str]]:
    """The method that a name with options describes, or None with what is wrong. A name package.module:Class imports a
    method of the user's."""
    name = data.get("name")
    try:
        kind = _kind(name)
    except RladError as error:
        return None, [str(error)]
    hints = get_type_hints(kind)
    known = [field.name for field in fields(kind) if field.init]
    options = {key: value for key, value in data.items() if key != "name"}
    problems = [unknown_key(f"method.{key}", known, f"allowed for {name}") for key in options if key not in known]
    for key in known:
        # A word that is not among the choices goes to the method itself, which knows why it is not.
        if key in options and not (get_origin(hints[key]) is Literal and isinstance(options[key], str)):
            problems += type_problem(f"method.{key}", hints[key], options[key])
    if problems:
        return None, problems
    try:
        return kind(**options), []
    except ValueError as error:
        return None, [f"method {name}: {error}"]


def _kind(name: Any) -> type[Method]:
    if isinstance(name, str) and ":" in name and name not in METHODS:
        from rlad.tasks.custom import import_object

        found = import_object(name, "method.name")
        if not (isinstance(found, type) and issubclass(found, Method)):
            raise RladError(f"method.name {name!r}: must be a class that derives from rlad.objectives.Method")
        METHODS[name] = found
    if not isinstance(name, str) or name not in METHODS:
        raise RladError(
            f"method.name: there is no method {name!r}; methods: {', '.join(METHODS)}, or package.module:Class for one "
            f"of your own{close_to(str(name), METHODS)}"
        )
    return METHODS[name]


def make_method(options: Mapping[str, Any]) -> Method:
    """The Method that `checked_method` finds. Raises RladError with what is wrong."""
    method, problems = checked_method(options)
    if method is None:
        raise RladError("; ".join(problems))
    return method


def method_options(method: Any, epsilon: float, epsilon_high: float | None) -> dict[str, Any]:
    """A method as plain options, so that a config can be saved. The clip range comes from the method where it is given
    there, and else from TRL's epsilon and epsilon_high. Raises RladError for an unknown method or option.

    method: a name, a mapping with such a name (as JSON too, for a command line), or a Method that METHODS knows.
    """
    if isinstance(method, Method):
        kind, name = type(method), getattr(method, "name", None)
        if METHODS.get(str(name)) is not kind:  # it would be made again as what the name stands for
            raise RladError(
                f"method: the name {name!r} does not stand for {kind.__name__}: give the class a name of its own and "
                f"enter it, METHODS[{kind.__name__}.name] = {kind.__name__}"
            )
        return {"name": name, **asdict(method)}
    if isinstance(method, str):
        method = _parsed(method) if method.lstrip().startswith("{") else {"name": method}
    if not isinstance(method, Mapping):
        raise RladError(f"method must be a name, a mapping with a name, or a Method, not {method!r}")
    clip = {"clip_low": epsilon, "clip_high": epsilon if epsilon_high is None else epsilon_high}
    options = {**clip, **method}
    return {"name": options.get("name"), **asdict(make_method(options))}


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise RladError(f"method: {text!r} is not JSON: {error}") from None
