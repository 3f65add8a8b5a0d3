"""Do teacher and student speak the same tokens? Checked before the first step: a mismatch trains on noise, silently."""

from __future__ import annotations

import warnings
from typing import Any

from rlad.errors import RladError

ALIGN_SPANS = "teacher: {path: ..., alignment: spans} in a recipe, teacher_alignment='spans' for RLADTrainer"
# Splits that differ between pre-tokenizers: digits, runs of spaces, contractions, line ends, scripts, tags, LaTeX.
PROBE = "It's 12345 + 6.78 =  x?\n\n\tdef f(a):\n    return a<=b\n<think>\\frac{1}{2}</think> naïve 漢字 🙂\r\n"


def tokenizer_differences(student: Any, teacher: Any) -> list[str]:
    """What differs between two tokenizers in a way that makes the teacher's scores wrong; empty when nothing does.

    Compared by token, not by size: a teacher may have more padding rows in its embedding, but every word must have
    the same id in both, a probing text must split the same way, and the end of sequence must be the same token.
    """
    differences = []
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    wrong = [
        (word, ours.get(word), theirs.get(word))
        for word in ours.keys() | theirs.keys()
        if ours.get(word) != theirs.get(word)
    ]
    if wrong:
        word, a, b = min(wrong, key=lambda each: str(each[0]))
        differences.append(
            f"{len(wrong)} tokens have different ids or are missing in one (e.g. {word!r}: student {a}, teacher {b})"
        )
    elif student(PROBE).input_ids != teacher(PROBE).input_ids:
        differences.append("the same words, but a text is split into them differently (merges or pre-tokenizer)")
    if student.eos_token_id != teacher.eos_token_id:
        differences.append(
            f"the end of sequence is {student.eos_token!r} for the student and {teacher.eos_token!r} for the teacher, "
            "so the teacher would punish every ending (a base model beside an instruct model? In a recipe "
            "model.eos_token sets the student's)"
        )
    return differences


def template_difference(student: Any, teacher: Any) -> str | None:
    """What to know where the two chat templates write one conversation differently; None where they do not.

    No error: the teacher is shown the student's prompt, whatever its own template is. But it was trained on the other.
    """
    if not student.chat_template or not teacher.chat_template:
        return None
    talk = [{"role": "user", "content": "Who?"}]
    try:
        ours, theirs = (
            each.apply_chat_template(talk, add_generation_prompt=True, tokenize=False) for each in (student, teacher)
        )
    except Exception as error:  # a template is a program of the model's author: it may refuse for any reason
        return f"the chat templates could not be compared ({type(error).__name__}: {error})"
    if ours == theirs:
        return None
    return (
        f"the chat templates differ: the teacher will see the student's {ours!r} where its own is {theirs!r}; if its "
        "scores look poor, give the student's tokenizer the teacher's chat template"
    )


def length_problem(teacher_config: Any, max_completion_length: int) -> str | None:
    """What is wrong where the longest response does not fit the teacher's positions; None where it does."""
    limit = getattr(teacher_config.get_text_config(), "max_position_embeddings", None)
    if limit is None or max_completion_length < limit:
        return None
    return (
        f"the teacher has {limit} positions, too few for a prompt and max_completion_length {max_completion_length}: "
        "lower that, or choose a teacher with a longer context"
    )


def check_tokenizers(student: Any, teacher: Any) -> None:
    """Raise RladError that says what differs and what to do, when the teacher cannot score the student's tokens.

    Warns (UserWarning) where the chat templates differ.
    """
    differences = tokenizer_differences(student, teacher)
    if differences:
        raise RladError(
            f"teacher and student do not share a tokenizer: {'; '.join(differences)}. Choose a teacher of the "
            "student's family, and give both the same end-of-sequence token; or align the two on the text: "
            f"{ALIGN_SPANS}"
        )
    if note := template_difference(student, teacher):
        warnings.warn(note, stacklevel=2)
