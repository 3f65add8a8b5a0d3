"""The served teacher against a stub of vLLM: right scores, every fault, no key anywhere, several servers."""

from __future__ import annotations

import json
import logging
import math
import re
import socket
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
import torch

import stub_teacher
import tiny
from rlad.errors import RladError
from rlad.teacher import Teacher
from rlad.teacher import server as server_module
from rlad.teacher.server import ServerTeacher, choose_model, look, read_answer
from rlad.teacher.transport import LONGEST_BACKOFF, backoff, checked_url, retry_after
from stub_teacher import StubTeacher, edited, hung, raw, reset, status, trickling, truncated

PROMPTS = [[5, 6, 7], [8], [9, 10], [11, 12, 13, 14]]
RESPONSES = [[20, 21], [22, 23, 24], [], [25]]
KEY = "sk-very-secret-9f3a"


def teacher(*stubs: StubTeacher, **options: Any) -> ServerTeacher:
    """A teacher whose waits are short."""
    defaults: dict[str, Any] = {"retries": 3, "backoff": 0.01, "timeout": 5.0}
    return ServerTeacher([stub.url for stub in stubs], **(defaults | options))


def one(stub: StubTeacher, **options: Any) -> torch.Tensor:
    (row,) = teacher(stub, **options).score([[5, 6, 7]], [[20, 21]])
    return row


ONE = stub_teacher.expected([5, 6, 7], [20, 21])


def failure(*stubs: StubTeacher, **options: Any) -> str:
    with pytest.raises(RladError) as caught:
        teacher(*stubs, **options).score([[5, 6, 7]], [[20, 21]])
    return str(caught.value)


# --- what is asked and what comes back


def test_scores_are_those_of_the_responses_in_order() -> None:
    with StubTeacher() as stub:
        made = teacher(stub)
        scores = made.score(PROMPTS, RESPONSES)
    assert isinstance(made, Teacher)
    for prompt, response, row in zip(PROMPTS, RESPONSES, scores, strict=True):
        assert row.dtype == torch.float32 and row.device.type == "cpu" and not row.requires_grad
        assert torch.equal(row, torch.tensor(stub_teacher.expected(prompt, response)))
    assert len(stub.bodies) == 3  # nothing is asked about an empty response
    body = next(each for each in stub.bodies if each["prompt"] == [5, 6, 7, 20, 21])
    assert body == {
        "model": "stub", "prompt": [5, 6, 7, 20, 21], "max_tokens": 1, "temperature": 1, "prompt_logprobs": 0
    }  # fmt: skip


def test_what_is_not_a_batch_is_refused() -> None:
    with StubTeacher() as stub:
        with pytest.raises(ValueError, match="1 prompts but 2 responses"):
            teacher(stub).score([[1]], [[1], [2]])
        with pytest.raises(ValueError, match="a prompt is empty"):
            teacher(stub).score([[]], [[1]])
        assert teacher(stub).score([], []) == []
    assert stub.bodies == []


def test_connections_are_kept_between_calls() -> None:
    with StubTeacher() as stub:
        made = teacher(stub, concurrency=1)
        for _ in range(3):
            made.score(PROMPTS, RESPONSES)
    assert len(stub.bodies) == 9 and stub.connections == 1


@pytest.mark.parametrize("concurrency", [1, 3])
def test_no_more_than_asked_for_are_in_flight(concurrency: int) -> None:
    together = threading.Barrier(concurrency)  # none is answered before that many are there

    def score(ids: Any, place: int) -> float:
        together.wait(5)
        return stub_teacher.logprob(ids, place)

    with StubTeacher(score) as stub:
        teacher(stub, concurrency=concurrency).score([[1]] * 9, [[2]] * 9)
    assert stub.most_busy == concurrency and len(stub.bodies) == 9


def test_it_works_where_a_loop_runs_as_in_a_notebook() -> None:
    import asyncio

    async def cell() -> torch.Tensor:
        with StubTeacher() as stub:
            return one(stub)

    assert asyncio.run(cell()).tolist() == ONE


# --- what can pass is tried again


@pytest.mark.parametrize(
    "fault",
    [status(500), status(503), status(408), status(425), status(429), reset, truncated],
    ids=["500", "503", "408", "425", "429", "reset", "truncated"],
)
def test_what_can_pass_is_tried_again(fault: Any) -> None:
    with StubTeacher(faults=[fault, fault]) as stub:
        assert one(stub).tolist() == ONE
    assert len(stub.bodies) == 3 and stub.bodies[0] == stub.bodies[2]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (status(500, "CUDA error"), "HTTP 500: CUDA error"),
        (reset, "the connection broke"),
        (truncated, "an answer that is cut short or is not JSON"),
        (status(429, "slow down"), "HTTP 429: slow down"),
    ],
    ids=["500", "reset", "truncated", "429"],
)
def test_what_does_not_pass_is_one_error_that_says_everything(fault: Any, words: str) -> None:
    with StubTeacher(always=fault) as stub:
        message = failure(stub, retries=2)
        assert len(stub.bodies) == 3
    assert message.startswith(f"sequence 0 of 1 was not scored: the teacher at {stub.url} failed: {words}")
    assert message.endswith(f"(3 tries). {server_module.GO_ON}") and "--resume" in message


def test_the_sequence_that_failed_is_named() -> None:
    def third(handler: Any, good: Any) -> None:
        handler.send(500, {}) if len(good["choices"][0]["prompt_logprobs"]) == 9 else handler.send(200, good)

    with StubTeacher(always=third) as stub, pytest.raises(RladError, match=r"^sequence 2 of 4 was not scored"):
        teacher(stub, retries=1).score([[1], [2], [3] * 7, [4]], [[5], [6], [7, 8], [9]])


@pytest.mark.parametrize("retries", [0, 2])
def test_a_server_that_is_not_there(retries: int) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(RladError, match=rf"the teacher at {url} failed: cannot connect .* --resume$"):
        ServerTeacher(url, retries=retries, backoff=0.01).score([[1]], [[2]])


def test_a_server_that_goes_away_while_it_scores() -> None:
    with StubTeacher() as stub:
        made = teacher(stub, retries=2)
        assert len(made.score(PROMPTS, RESPONSES)) == 4
        stub.stop()
        with pytest.raises(RladError, match=rf"sequence \d of 4 was not scored: the teacher at {stub.url} failed: "):
            made.score(PROMPTS, RESPONSES)
        with StubTeacher(port=stub.port):  # back at the same place
            assert made.score([[5, 6, 7]], [[20, 21]])[0].tolist() == ONE


@pytest.mark.parametrize("fault", [hung, trickling])
def test_a_try_has_a_deadline_for_the_whole_of_it(fault: Any) -> None:
    with StubTeacher(always=fault) as stub:
        started = time.monotonic()
        message = failure(stub, timeout=0.2, retries=1)
        assert 0.2 < time.monotonic() - started < 4.0  # every byte of it would take longer
    assert "no whole answer within 0.2 s" in message


def test_a_slow_try_is_followed_by_another() -> None:
    with StubTeacher(faults=[hung]) as stub:
        assert one(stub, timeout=0.3).tolist() == ONE


def test_retry_after_is_waited_for_and_not_more() -> None:
    with StubTeacher(faults=[status(429, Retry_After="0"), status(503, Retry_After="1")]) as stub:
        assert one(stub, backoff=20.0).tolist() == ONE  # a backoff would be 10 s or more
    first, second, third = stub.times
    assert second - first < 5.0 and 1.0 <= third - second < 5.0


def test_a_wait_beyond_the_deadline_ends_it_at_once() -> None:
    with StubTeacher(always=status(429, "quota", Retry_After="3600")) as stub:
        message = failure(stub)
    assert "HTTP 429: quota, and asks to wait 3600 s (1 try)" in message


def test_retry_after_has_two_forms() -> None:
    assert retry_after("7") == 7.0
    later = datetime.now(UTC) + timedelta(seconds=90)
    assert 85 < (retry_after(format_datetime(later, usegmt=True)) or 0) <= 90
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert [retry_after(each) for each in (None, "soon", "", "-5")] == [None] * 4


def test_backoff_doubles_with_jitter_and_an_end() -> None:
    for tries, most in ((1, 0.5), (2, 1.0), (3, 2.0), (30, LONGEST_BACKOFF)):
        drawn = [backoff(0.5, tries) for _ in range(200)]
        assert most / 2 <= min(drawn) < most * 0.6 and most * 0.9 < max(drawn) <= most


def test_waiting_leaves_the_global_random_numbers_alone() -> None:
    import random

    before = random.getstate()
    with StubTeacher(faults=[status(500)]) as stub:
        one(stub)
    assert random.getstate() == before


# --- what cannot pass is not


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (400, "--max-model-len"), (401, "api_key_env"), (403, "api_key_env"), (404, "teacher.model"),
        (422, "--max-model-len"), (307, "Redirects are not followed"),
    ],
)  # fmt: skip
def test_a_refusal_is_final(code: int, words: str) -> None:
    with StubTeacher(always=status(code, "no such thing")) as stub:
        message = failure(stub)
        assert len(stub.bodies) == 1
    assert message.startswith(
        f"the teacher at {stub.url} refused sequence 0 of 1 (5 tokens): HTTP {code}: no such thing"
    )
    assert words in message


def replace(place: int, row: Any) -> Any:
    """An answer whose prompt_logprobs have `row` at one place."""
    return edited(lambda choice: choice["prompt_logprobs"].__setitem__(place, row))


def shift(choice: dict[str, Any]) -> None:
    rows = choice["prompt_logprobs"]
    choice["prompt_logprobs"] = [None, *rows[2:], rows[1]]


MALFORMED = {
    "short": (edited(lambda choice: choice["prompt_logprobs"].pop()), "prompt_logprobs of 4 tokens for 5"),
    "long": (edited(lambda choice: choice["prompt_logprobs"].append({"9": {"logprob": -1.0}})), "of 6 tokens for 5"),
    "shifted": (edited(shift), "position 1 holds token 7 instead of 6, its neighbour: the answer may be shifted"),
    "without null": (edited(lambda choice: choice["prompt_logprobs"].reverse()), "a value for the first token"),
    "foreign": (replace(3, {"99": {"logprob": -1.0}}), "position 3 holds token 99 instead of 20"),
    "foreign in the prompt": (replace(1, {"99": {"logprob": -1.0}}), "position 1 holds token 99 instead of 6"),
    "two tokens": (replace(3, {"20": {"logprob": -1.0}, "9": {"logprob": -2.0}}), "position 3 holds 2 tokens"),
    "null inside": (replace(3, None), "position 3 holds None tokens instead of one"),
    "text": (replace(4, {"21": {"logprob": "-1.0"}}), "position 4 holds '-1.0' instead of a log-prob"),
    "true": (replace(4, {"21": {"logprob": True}}), "position 4 holds True instead of a log-prob"),
    "no log-prob": (replace(4, {"21": {}}), "position 4 holds '' instead of a log-prob"),
    "no prompt_logprobs": (edited(lambda choice: choice.pop("prompt_logprobs")), "no prompt_logprobs: is it vLLM's"),
    "another index": (edited(lambda choice: choice.update(index=1)), "a choice of index 1"),
    "no choices": (raw({"choices": []}), "0 choices for one sequence"),
    "two choices": (lambda handler, good: handler.send(200, {"choices": good["choices"] * 2}), "2 choices for one"),
    "a list": (raw([]), "no choices"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_an_answer_that_does_not_fit_is_an_error_and_not_tried_again(name: str) -> None:
    fault, words = MALFORMED[name]
    with StubTeacher(always=fault) as stub:
        message = failure(stub)
        assert len(stub.bodies) == 1
    assert message.startswith(f"the teacher at {stub.url} answered sequence 0 of 1 (5 tokens) wrongly: ")
    assert words in message


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None, -9999.0, 0.5])
def test_a_value_that_is_no_log_prob_is_passed_on_as_nan(value: Any) -> None:
    with StubTeacher(always=replace(4, {"21": {"logprob": value}})) as stub:
        row = one(stub)
    assert row[0].item() == ONE[0] and row[1].isnan()


def test_rounding_above_zero_and_very_unlikely_tokens_are_log_probs() -> None:
    rows = [None, {"2": {"logprob": 1e-5}}, {"3": {"logprob": -9000}}]
    row = read_answer({"choices": [{"index": 0, "prompt_logprobs": rows}]}, [1, 2, 3], 1)
    assert row.tolist() == [pytest.approx(1e-5), -9000.0]


# --- several servers


def test_the_least_busy_server_is_asked_first() -> None:
    """One server answers nothing until the other has had 20: until then it has its share of what is in flight."""
    enough, given = threading.Event(), []

    def at_once(ids: Any, place: int) -> float:
        if len(quick.bodies) >= 20:
            given.append(len(slow.bodies))
            enough.set()
        return stub_teacher.logprob(ids, place)

    def late(ids: Any, place: int) -> float:
        enough.wait(5)
        return stub_teacher.logprob(ids, place)

    with StubTeacher(at_once) as quick, StubTeacher(late) as slow:
        scores = teacher(slow, quick, concurrency=4).score([[i] for i in range(30)], [[i] for i in range(30)])
    assert given[0] == 2
    assert len(quick.bodies) + len(slow.bodies) == 30
    assert [row.tolist() for row in scores] == [stub_teacher.expected([i], [i]) for i in range(30)]


def test_one_that_fails_is_set_aside_and_the_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    with StubTeacher(always=status(500, "out of memory")) as sick, StubTeacher() as well:
        made = teacher(sick, well, retries=1)
        scores = made.score(PROMPTS, RESPONSES)
        tried = len(sick.bodies)
        made.score(PROMPTS, RESPONSES)
    for prompt, response, row in zip(PROMPTS, RESPONSES, scores, strict=True):
        assert row.tolist() == stub_teacher.expected(prompt, response)
    assert 2 <= tried <= 4 and len(sick.bodies) == tried
    (record,) = caplog.records
    assert f"the teacher at {sick.url} is set aside: HTTP 500: out of memory (2 tries); 1 go on" in record.getMessage()


def test_no_more_tries_at_a_server_that_another_sequence_found_gone() -> None:
    def fault(handler: Any, good: Any) -> None:
        choice = good["choices"][0]
        gone = "7" in choice["prompt_logprobs"][-1]  # this one is told to wait for an hour, and gives up at once
        status(500, **({"Retry_After": "3600"} if gone else {}))(handler, good)

    with StubTeacher(always=fault) as sick, StubTeacher() as well:
        made = teacher(sick, well, retries=5, backoff=0.2, concurrency=4)
        scores = made.score([[1]] * 4, [[7], [8], [9], [10]])
        assert [row.tolist() for row in scores] == [stub_teacher.expected([1], [last]) for last in (7, 8, 9, 10)]
        assert 2 <= len(sick.bodies) <= 4  # of the 7 that two sequences would make


def test_one_that_comes_back_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "LOOK_AGAIN_SECONDS", 0.0)
    with StubTeacher(faults=[status(500)]) as sick, StubTeacher() as well:
        made = teacher(sick, well, retries=0, concurrency=1)
        made.score(PROMPTS, RESPONSES)
        assert (len(sick.bodies), len(well.bodies)) == (1, 3)
        made.score(PROMPTS, RESPONSES)
        assert (len(sick.bodies), len(well.bodies)) == (4, 3)


@pytest.mark.parametrize("what", ["a proxy's 404", "another model", "no list"])
def test_one_that_comes_back_as_another_ends_nothing_while_others_serve(
    what: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server_module, "LOOK_AGAIN_SECONDS", 0.0)
    with StubTeacher(faults=[status(500)]) as sick, StubTeacher() as well:
        made = teacher(sick, well, retries=0, concurrency=1)
        made.score(PROMPTS, RESPONSES)
        if what == "another model":
            sick.models = ["other"]
        else:
            answer = (404, {"detail": "Not Found"}) if what == "a proxy's 404" else (200, {"data": 7})
            sick.listed = lambda handler: handler.send(*answer)
        assert len(made.score(PROMPTS, RESPONSES)) == 4
        assert (len(sick.bodies), len(well.bodies)) == (1, 6)
    assert f"the teacher at {sick.url} is not used: " in caplog.records[-1].getMessage()


def test_all_gone_is_one_error_that_names_them_all() -> None:
    with StubTeacher(always=status(500, "a")) as first, StubTeacher(always=status(502, "b")) as second:
        message = failure(first, second, retries=0)
    assert message.startswith("sequence 0 of 1 was not scored: ") and message.count("--resume") == 1
    assert f"{first.url} failed: HTTP 500: a" in message and f"{second.url} failed: HTTP 502: b" in message


def test_one_of_several_that_is_not_there_at_the_start_is_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    with StubTeacher() as gone, StubTeacher() as well:
        gone.stop()
        made = teacher(gone, well)
        assert len(made.score(PROMPTS, RESPONSES)) == 4
        assert len(well.bodies) == 3
    (record,) = caplog.records
    assert record.getMessage().startswith(f"the teacher at {gone.url} is not used: ")


# --- before the first step


def split(text: str) -> list[int]:
    ids: list[int] = tiny.tokenizer()(text, add_special_tokens=False).input_ids
    return ids


def test_a_server_that_fits_is_found_to() -> None:
    with StubTeacher(splits=split) as stub:
        made = teacher(stub)
        made.prepare(tiny.tokenizer())
    assert made.model == "stub"
    (body,) = stub.bodies
    assert body["prompt"][-1] == tiny.tokenizer().eos_token_id and len(body["prompt"]) > 50


@pytest.mark.parametrize(
    ("stub", "options", "words"),
    [
        ({}, {"model": "other"}, r"does not serve 'other': it serves stub"),
        ({"models": ["a", "b"]}, {}, r"serves a, b: say which in teacher\.model"),
        ({"models": []}, {}, r"serves nothing: say which"),
        ({"splits": lambda text: split(text)[::-1]}, {}, "does not have the tokens of the student: a probing"),
        ({"splits": lambda text: split(text + "x")}, {}, "does not have the tokens of the student: a probing"),
        ({"score": lambda ids, place: math.nan}, {}, r"self-test: .* gives NaN, infinite or positive"),
        (
            {"always": status(400, "Token id 279 is out of vocabulary")},
            {},
            "refused the self-test .* out of vocabulary",
        ),
        ({"always": status(500)}, {"retries": 0}, "self-test: the teacher at .* failed: HTTP 500"),
        ({"always": edited(shift)}, {}, "answered the self-test .* wrongly: position 1"),
        ({"key": "k"}, {}, "refused to say what it serves: HTTP 401: .*api_key_env"),
        ({}, {"tokenizer": "/nowhere"}, "the tokenizer of the teacher '/nowhere' cannot be loaded"),
    ],
)
def test_a_server_that_does_not_fit_is_refused_before_the_first_step(
    stub: dict[str, Any], options: dict[str, Any], words: str
) -> None:
    with StubTeacher(**stub) as server, pytest.raises(RladError, match=words):
        teacher(server, **options).prepare(tiny.tokenizer())


def test_another_temperature_than_1_is_refused_before_anything_is_asked() -> None:
    made = ServerTeacher("http://127.0.0.1:9")
    with pytest.raises(RladError, match=r"does not fit temperature 0.7: vLLM's prompt_logprobs are at temperature 1"):
        made.prepare(tiny.tokenizer(), temperature=0.7)


def test_a_tokenizer_that_is_named_is_compared_whole(tmp_path: Any) -> None:
    tiny.tokenizer().save_pretrained(tmp_path / "same")
    tiny.tokenizer(("zebra quagga okapi giraffe",) * 4).save_pretrained(tmp_path / "other")
    with StubTeacher() as stub:
        teacher(stub, tokenizer=str(tmp_path / "same")).prepare(tiny.tokenizer())
        with pytest.raises(RladError, match="tokens have different ids or are missing"):
            teacher(stub, tokenizer=str(tmp_path / "other")).prepare(tiny.tokenizer())


def test_what_cannot_be_compared_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with StubTeacher() as stub:
        teacher(stub).prepare(tiny.tokenizer())
    assert [record.getMessage() for record in caplog.records] == [
        f"{stub.url} has no /tokenize: name the teacher's tokenizer to have it checked"
    ]


def test_a_named_tokenizer_does_not_answer_for_the_server(tmp_path: Any) -> None:
    """What it really speaks is asked, and compared with the tokens that will be sent: in spans the teacher's own."""
    tiny.tokenizer().save_pretrained(tmp_path / "same")
    with StubTeacher(splits=lambda text: split(text)[::-1]) as stub:
        made = teacher(stub, tokenizer=str(tmp_path / "same"))
        with pytest.raises(RladError, match=r"does not have the tokens of .*same: a probing"):
            made.prepare(tiny.tokenizer())
    with StubTeacher(splits=split) as stub:
        teacher(stub, tokenizer=str(tmp_path / "same")).prepare(tiny.tokenizer())


def test_a_server_with_too_little_room_is_refused_before_the_first_step() -> None:
    with StubTeacher(limit=200) as stub:
        teacher(stub).prepare(tiny.tokenizer(), longest=198)  # a token of the prompt, and one that vLLM generates
        with pytest.raises(RladError, match=r"takes 200 tokens, and a response alone may have 199: .*-max-model-len"):
            teacher(stub).prepare(tiny.tokenizer(), longest=199)


def test_the_model_is_the_only_one_or_the_one_that_is_named() -> None:
    assert choose_model(None, ["a"], "u") == "a" and choose_model("b", ["a", "b"], "u") == "b"


def test_look_says_what_is_served_and_never_hangs() -> None:
    with StubTeacher(models=["a", "b"]) as stub:
        assert look(stub.url) == look(f"{stub.url}/v1/") == ["a", "b"]
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        started = time.monotonic()
        with pytest.raises(RladError, match=r"does not answer: no whole answer within 0.2 s"):
            look(f"http://127.0.0.1:{silent.getsockname()[1]}", seconds=0.2)
        assert time.monotonic() - started < 2.5


# --- addresses and keys


@pytest.mark.parametrize(
    ("url", "clean"),
    [
        ("http://host:8000", "http://host:8000"), ("http://host:8000/", "http://host:8000"),
        ("https://host/v1", "https://host"), ("https://host/teacher/v1/", "https://host/teacher"),
        ("http://[::1]:80", "http://[::1]:80"),
    ],
)  # fmt: skip
def test_an_address_is_brought_to_one_form(url: str, clean: str) -> None:
    assert checked_url(url) == clean


@pytest.mark.parametrize("url", ["host:8000", "ftp://host", "http://", "http://host:99999", "http://a b", "http://[x"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(RladError, match=re.escape(f"is written http://host:port, not {url!r}")):
        ServerTeacher(url)


@pytest.mark.parametrize("url", [f"http://me:{KEY}@host:8000", f"me:{KEY}@host", f"http://host?key={KEY}"])
def test_a_secret_in_an_address_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(RladError, match="api_key_env") as caught:
        ServerTeacher(url)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("options", [{"concurrency": 0}, {"retries": -1}, {"timeout": 0}, {"timeout": math.nan}])
def test_options_that_cannot_work_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(RladError, match="concurrency >= 1, retries >= 0 and timeout > 0"):
        ServerTeacher("http://host", **options)


def test_the_same_server_twice_and_none_are_refused() -> None:
    for urls in (["http://host", "http://host/v1"], []):
        with pytest.raises(RladError, match="needs URLs that differ"):
            ServerTeacher(urls)


def test_the_key_is_sent_and_is_nowhere_else(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TEACHER_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    with StubTeacher(key=KEY, splits=split) as stub:
        made = teacher(stub, api_key_env="TEACHER_KEY")
        made.prepare(tiny.tokenizer())
        assert made.score([[5, 6, 7]], [[20, 21]])[0].tolist() == ONE
        stub.always = status(500, f"bad key {KEY}")  # a server that says it aloud
        with pytest.raises(RladError, match=r"bad key \*\*\*") as transient:
            made.score([[5, 6, 7]], [[20, 21]])
        stub.always, stub.key = None, "another"
        with pytest.raises(RladError, match=r"HTTP 401: bad key: Bearer \*\*\*") as final:
            teacher(stub, api_key_env="TEACHER_KEY").score([[1]], [[2]])
    seen = [str(transient.value), str(final.value), repr(made), repr(vars(made)), caplog.text, *capsys.readouterr()]
    assert caplog.text and not any(KEY in text for text in seen)


def test_a_key_that_is_missing_or_cannot_be_sent_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEACHER_KEY", raising=False)
    with pytest.raises(RladError, match="the environment variable TEACHER_KEY is not set"):
        ServerTeacher("http://host", api_key_env="TEACHER_KEY")
    monkeypatch.setenv("TEACHER_KEY", "gehäim\nnis")
    with pytest.raises(RladError, match="TEACHER_KEY holds characters that cannot be sent") as caught:
        ServerTeacher("http://host", api_key_env="TEACHER_KEY")
    assert "geh" not in str(caught.value)


def test_interrupting_a_call_ends_it() -> None:
    """What Ctrl-C raises in the waiting thread cancels what is in flight."""
    from rlad.teacher import transport

    ended = threading.Event()

    async def work() -> None:
        import asyncio

        try:
            await asyncio.sleep(30)
        finally:
            ended.set()

    inner = transport.asyncio.run_coroutine_threadsafe

    def interrupted(coroutine: Any, loop: Any) -> Any:
        future = inner(coroutine, loop)
        time.sleep(0.05)
        future.result = _raiser(KeyboardInterrupt)  # type: ignore[method-assign]
        return future

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(transport.asyncio, "run_coroutine_threadsafe", interrupted)
        transport.run(work())
    assert ended.wait(1.0)


def _raiser(kind: type[BaseException]) -> Callable[[], Any]:
    def result() -> Any:
        raise kind

    return result


def test_json_is_read_as_the_stub_writes_it() -> None:
    assert json.dumps(math.nan) == "NaN"  # so the NaN test above sends what is not JSON
