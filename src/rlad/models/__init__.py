"""The embedded pair: a tiny teacher and a tiny student that travel with the package.

`embedded:teacher` and `embedded:student` name them wherever a model is named. `python -m rlad.models.make` made them.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

from rlad.errors import RladError

EMBEDDED = ("teacher", "student")


def resolve(name: str) -> str:
    """The folder of an embedded model for "embedded:NAME"; any other name (a hub id or a path) unchanged.

    Raises RladError for an unknown embedded name.
    """
    if not name.startswith("embedded:"):
        return name
    short = name.removeprefix("embedded:")
    if short not in EMBEDDED:
        raise RladError(f"there is no embedded model {name!r}; use {' or '.join(f'embedded:{e}' for e in EMBEDDED)}")
    return str(Path(str(resources.files("rlad.models").joinpath(short))))


def load_tokenizer(name: str, whose: str, **names: Any) -> Any:
    """The tokenizer of a folder, a hub id or embedded:NAME; `names` go to from_pretrained.

    whose: what the error calls its owner. Raises RladError where it cannot be loaded.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(resolve(name), **names)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise RladError(f"the tokenizer of {whose} {name!r} cannot be loaded: {reason}") from error
