"""A prompt that already opens <think>: the template is the model's own with the tag at its end."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from transformers import AutoTokenizer

import tiny
from rlad.cli.main import main
from rlad.errors import RladError
from rlad.models import resolve
from rlad.trainer.sections import StudentSpec
from rlad.trainer.session import load_student, open_think

MESSAGES = [{"role": "user", "content": "Who?"}]


def test_the_prompt_ends_in_think_and_nothing_else_changes(tmp_path: Path) -> None:
    plain = AutoTokenizer.from_pretrained(resolve("embedded:student"))
    _, tokenizer = load_student(StudentSpec(path="embedded:student", open_think=True))
    for options, end in (({"add_generation_prompt": True}, "<think>\n"), ({"add_generation_prompt": False}, "")):
        before = plain.apply_chat_template(MESSAGES, tokenize=False, **options)
        assert tokenizer.apply_chat_template(MESSAGES, tokenize=False, **options) == before + end
    # Saved and loaded again it is the same, so that an evaluation of the model writes the prompts it was trained on.
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = again.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert text.endswith("<think>\n")
    with pytest.raises(RladError, match="ends in <think> already"):
        open_think(again)


def test_a_tokenizer_without_a_template_is_refused() -> None:
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.chat_template = None
    with pytest.raises(RladError, match="needs a tokenizer with one chat template"):
        open_think(tokenizer)


def test_check_warns_where_prompt_and_scorer_disagree(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["quickstart", "model.open_think=true", "task.scorer=logic-rl"]
    main(["check", *options])
    assert "caution: the scorer logic-rl counts the prompt's <think>" in capsys.readouterr().out
    main(["check", *options, "task.prompt_ends_with_think=true"])
    assert "caution" not in capsys.readouterr().out
