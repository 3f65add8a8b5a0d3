"""A method as scripts and command lines give it, what is set on a config later, and what a user's teacher returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import HfArgumentParser

from rlad import RLADConfig
from rlad.errors import RladError
from rlad.objectives import METHODS, RLAD, Method
from rlad.trainer.config import Recipe, RecipeError
from rlad.trainer.methods import checked_method
from rlad.trainer.teachers import make_teacher, teacher_scores

OWN = """
from dataclasses import dataclass
from rlad.objectives import Method

@dataclass(frozen=True, kw_only=True)
class Praise(Method):
    name = "praise"
    coefficient: float = 0.05

NUMBER = 3
"""


@dataclass(frozen=True, kw_only=True)
class Unnamed(RLAD):
    """Inherits RLAD's name."""


@dataclass(frozen=True, kw_only=True)
class Unknown(Method):
    """METHODS does not have it."""

    name = "unknown"


def config(tmp_path: Path, **options: Any) -> RLADConfig:
    return RLADConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **options)


@pytest.mark.parametrize(("method", "name"), [(Unnamed(), "'rlad'"), (Unknown(), "'unknown'")])
def test_an_object_that_its_name_does_not_stand_for_is_refused(tmp_path: Path, method: Method, name: str) -> None:
    kind = type(method).__name__
    with pytest.raises(RladError, match=f"the name {name} does not stand for {kind}: .*METHODS.{kind}.name. = {kind}"):
        config(tmp_path, method=method)


def test_a_registered_object_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "unknown", Unknown)
    assert config(tmp_path, method=Unknown(clip_high=0.5)).method["name"] == "unknown"


@pytest.mark.parametrize(
    ("given", "name", "alpha"),
    [([], "rlad", 0.5), (["--method", "grpo"], "grpo", None),
     (["--method", '{"name": "rlad", "alpha": 0.3}'], "rlad", 0.3)],
)  # fmt: skip
def test_a_command_line_gives_the_method(tmp_path: Path, given: list[str], name: str, alpha: float | None) -> None:
    line = ["--output_dir", str(tmp_path), "--use_cpu", "true", "--bf16", "false", *given]
    (made,) = HfArgumentParser(RLADConfig).parse_args_into_dataclasses(line)
    assert made.method["name"] == name and made.method.get("alpha") == alpha


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [("loss_type", "cispo", "loss_type"), ("epsilon_high", 0.5, "contradict"), ("delta", 1.5, "delta"),
     ("importance_sampling_level", "sequence", "importance_sampling_level"), ("groups", "refil", "groups"),
     ("record_every", "5", "record_every: must be"), ("method", "rladd", "did you mean")],
)  # fmt: skip
def test_what_is_set_later_is_checked_when_the_trainer_is_made(
    tmp_path: Path, field: str, value: Any, said: str
) -> None:
    made = config(tmp_path)
    made.check()
    setattr(made, field, value)
    with pytest.raises(RladError, match=said):
        made.check()


def test_a_method_set_later_counts(tmp_path: Path) -> None:
    made = config(tmp_path)
    made.method = "grpo"
    made.check()
    assert made.method["name"] == "grpo"


@pytest.mark.parametrize(
    ("method", "said"),
    [({"name": "rlad", "alpha": "0.3"}, "method.alpha: must be"), ({"name": "rlad", "alhpa": 0.3}, "alhpa.*alpha"),
     ("{name: rlad}", "is not JSON"), (3, "must be a name")],
)  # fmt: skip
def test_wrong_options_are_named_as_recipes_name_them(tmp_path: Path, method: Any, said: str) -> None:
    with pytest.raises(RladError, match=said):
        config(tmp_path, method=method)


def test_a_recipe_imports_a_method_by_its_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "praising.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(METHODS, "praising:Praise", None)  # taken away again after the test
    del METHODS["praising:Praise"]
    data = {
        "model": "embedded:student", "teacher": "embedded:teacher", "task": "knights_knaves",
        "method": {"name": "praising:Praise", "coefficient": 0.1}, "trainer": {"use_cpu": True, "bf16": False},
    }  # fmt: skip
    recipe = Recipe.from_mapping(data)
    made = recipe.make_method()
    assert made.name == "praise" and vars(made)["coefficient"] == 0.1
    assert Recipe.from_mapping(recipe.model_dump()).make_method() == made  # as a run's folder keeps it
    assert config(tmp_path, method=recipe.method).method["name"] == "praising:Praise"
    with pytest.raises(RecipeError, match="alpha"):
        Recipe.from_mapping({**data, "method": {"name": "praising:Praise", "alpha": 0.1}})


@pytest.mark.parametrize(
    ("name", "said"),
    [("praising:NUMBER", "derives from"), ("praising:Nothing", "has no Nothing"), ("no_such_module:X", "importing"),
     ("rladd", "did you mean"), (None, "there is no method None")],
)  # fmt: skip
def test_a_name_that_is_no_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: Any, said: str) -> None:
    (tmp_path / "praising.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    method, problems = checked_method({"name": name})
    assert method is None and len(problems) == 1
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(problems[0])


@pytest.mark.parametrize(
    ("rows", "said"),
    [([torch.zeros(2)], "log-probs of 1 sequences, and was asked for 2"), ([torch.zeros(2)] * 3, "of 3 sequences"),
     ([[0.0, 0.0]] * 2, "tensor for each sequence, and not list"),
     ([torch.zeros(2), torch.zeros(3)], "2 tokens of sequence 1")],
)  # fmt: skip
def test_a_teacher_that_returns_other_rows_than_were_asked_for_is_refused(rows: list[Any], said: str) -> None:
    ones = torch.ones(2, 2, dtype=torch.long)
    batch = dict.fromkeys(("prompt_ids", "prompt_mask", "completion_ids", "completion_mask"), ones)
    teacher = SimpleNamespace(score=lambda prompts, responses: rows)
    with pytest.raises(RladError, match=said):
        teacher_scores(teacher, batch, [{}, {}])  # type: ignore[arg-type]


def test_init_kwargs_are_for_a_teacher_given_by_name() -> None:
    with pytest.raises(RladError, match=r"dtype.*this one is made"):
        make_teacher(SimpleNamespace(), SimpleNamespace(score=None), None, {"dtype": "float16"})  # type: ignore[arg-type]
    with pytest.raises(RladError, match="no_such"):
        make_teacher(SimpleNamespace(), "http://127.0.0.1:9", None, {"no_such": 1})  # type: ignore[arg-type]
