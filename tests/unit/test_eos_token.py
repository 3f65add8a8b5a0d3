"""`model.eos_token`: a base student that ends its responses as its teacher does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, GenerationConfig

import letters_task
import tiny
from rlad.errors import RladError
from rlad.teacher.compatibility import tokenizer_differences
from rlad.trainer.preflight import found_problems
from rlad.trainer.sections import StudentSpec
from rlad.trainer.session import load_student


@pytest.fixture
def base(tmp_path: Path) -> str:
    return tiny.save(1, tmp_path / "base")


@pytest.fixture
def end(base: str) -> str:
    """A word of the tokenizer that is not its end."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    return next(word for word in sorted(tokenizer.get_vocab()) if word not in tokenizer.all_special_tokens)


def test_it_ends_responses_in_tokenizer_and_generation_and_is_saved(base: str, end: str, tmp_path: Path) -> None:
    _, untouched = load_student(StudentSpec(path=base))
    model, tokenizer = load_student(StudentSpec(path=base, eos_token=end))
    assert tokenizer.eos_token == end != untouched.eos_token
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == tokenizer.get_vocab()[end]
    assert tokenizer_differences(untouched, tokenizer) == [
        f"the end of sequence is {untouched.eos_token!r} for the student and {end!r} for the teacher, so the teacher "
        "would punish every ending (a base model beside an instruct model? In a recipe model.eos_token sets the "
        "student's)"
    ]
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").eos_token == end
    assert GenerationConfig.from_pretrained(tmp_path / "saved").eos_token_id == tokenizer.eos_token_id


def test_a_token_that_is_not_there_is_refused(base: str) -> None:
    with pytest.raises(RladError, match=r"^model.eos_token: the tokenizer has no token '<nothing>' \(it ends in"):
        load_student(StudentSpec(path=base, eos_token="<nothing>"))


def recipe(base: str, tmp_path: Path, eos_token: str | None, teacher: str) -> Any:
    model = {"path": base, "eos_token": eos_token}
    return letters_task.recipe(base, tmp_path / "run", {}, model=model, method="rlad", teacher=teacher)


def test_check_compares_the_end_that_the_recipe_says(base: str, end: str, tmp_path: Path) -> None:
    model, tokenizer = load_student(StudentSpec(path=base, eos_token=end))
    model.save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    teacher = str(tmp_path / "teacher")
    (found,) = found_problems(recipe(base, tmp_path, None, teacher))
    assert "the end of sequence is" in found and "model.eos_token" in found
    assert found_problems(recipe(base, tmp_path, end, teacher)) == []
    (found,) = found_problems(recipe(base, tmp_path, "<nothing>", teacher))
    assert found.startswith("model.eos_token: the tokenizer has no token '<nothing>'")
