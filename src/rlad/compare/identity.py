"""What makes two runs the same run: a recipe in a normal form, its hash, and where two of them differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rlad.trainer.config import Recipe, trainer_fields


def digest(content: Any) -> str:
    """A short hash of JSON values."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def normal(kind: str, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe as plain data with every default of this version written out, and without its output folder."""
    if kind == "sft":
        from rlad.offline.config import SftRecipe

        found: dict[str, Any] = SftRecipe.from_mapping(recipe).model_dump()
    else:
        made = Recipe.from_mapping(recipe)
        method = made.make_method()
        found = {**made.model_dump(), "method": {"name": made.method["name"], **asdict(method)}}
    found.pop("output")
    return evaluated_by(found) if kind == "evaluate" else found


def evaluated_by(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a recipe that an evaluation of its model before training depends on."""
    limited = (recipe["evaluate"] or {}).get("max_new_tokens") is not None  # else responses are as long as rollouts
    keys = ("chat_template_kwargs",) if limited else ("max_completion_length", "chat_template_kwargs")
    trainer = {key: value for key, value in _generation(recipe).items() if key in keys}
    return {**{key: recipe[key] for key in ("model", "task", "evaluate", "seed")}, "trainer": trainer}


def _generation(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """How a recipe's responses are generated, under the names that `rlad train` has for it."""
    if "sft" in recipe:
        from rlad.offline.config import SftSpec

        spec = SftSpec.model_validate(recipe["sft"])
        return {"max_completion_length": spec.max_new_tokens, "chat_template_kwargs": spec.chat_template_kwargs or None}
    length, template = (recipe["trainer"].get(key) for key in ("max_completion_length", "chat_template_kwargs"))
    usual = trainer_fields()["max_completion_length"][1]
    return {"max_completion_length": usual if length is None else length, "chat_template_kwargs": template or None}


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`trainer.max_steps is 50 here and 40 there` for each thing that two identities do not share."""
    found = []
    for key in sorted(ours.keys() | theirs.keys()):
        one, other, name = ours.get(key), theirs.get(key), f"{prefix}{key}"
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            found += differences(one, other, f"{name}.")
        elif one != other:
            found.append(f"{name} is {json.dumps(one)} here and {json.dumps(other)} there")
    return found
