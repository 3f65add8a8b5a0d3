"""What a recipe may say about its teacher, and what `rlad check` says about a served one."""

from __future__ import annotations

import inspect
import time
from pathlib import Path
from typing import Any

import pytest

from rlad.cli.main import main
from rlad.teacher.server import ServerTeacher
from rlad.trainer.config import Recipe, RecipeError
from rlad.trainer.sections import ByTaskSpec, LocalTeacherSpec, ServerSpec, alignment, trained_by
from stub_teacher import StubTeacher, hung

KEY = "hf_aBcDeFgHiJ"
RECIPE = "model: embedded:student\ntask: knights_knaves\nmethod: rlad\ntrainer: {use_cpu: true, bf16: false}\n"


def recipe(teacher: Any, **changes: Any) -> Recipe:
    data = {"model": "embedded:student", "task": "knights_knaves", "method": "rlad", "teacher": teacher}
    return Recipe.from_mapping({**data, "trainer": {"use_cpu": True, "bf16": False}, **changes})


def problem(teacher: Any, **changes: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        recipe(teacher, **changes)
    (sentence,) = caught.value.problems
    return sentence


def test_a_teacher_can_be_said_in_many_forms() -> None:
    assert recipe("embedded:teacher").teacher == LocalTeacherSpec(path="embedded:teacher")
    assert recipe({"path": "org/name", "dtype": "bfloat16"}).teacher == LocalTeacherSpec(
        path="org/name", dtype="bfloat16"
    )
    assert recipe("http://host:8000").teacher == recipe({"url": "http://host:8000"}).teacher
    several = recipe({"urls": ["http://a:1", "http://b:1"], "timeout": 30}).teacher
    assert isinstance(several, ServerSpec) and several.addresses == ["http://a:1", "http://b:1"]
    mixed = recipe({"by_task": {"math": "http://a:1", "logic": "embedded:teacher"}, "column": "kind"}).teacher
    assert mixed == ByTaskSpec(
        by_task={"math": ServerSpec(url="http://a:1"), "logic": LocalTeacherSpec(path="embedded:teacher")},
        column="kind",
    )
    assert str(mixed) == "http://a:1 for math, embedded:teacher for logic"


def test_the_alignment_reaches_the_trainer_and_no_loader() -> None:
    local, remote = (
        recipe({**each, "alignment": "spans"}).teacher
        for each in ({"path": "x"}, {"url": "http://a", "tokenizer": "org/name"})
    )
    assert isinstance(local, LocalTeacherSpec) and isinstance(remote, ServerSpec)
    assert alignment(local) == alignment(remote) == "spans"
    assert alignment(recipe("x").teacher) == alignment(recipe({"by_task": {"a": "x"}}).teacher) == "tokens"
    assert "alignment" not in local.load_kwargs() and "alignment" not in remote.arguments()
    with pytest.raises(RecipeError, match=r"model.alignment: unknown key"):
        recipe("x", model={"path": "y", "alignment": "spans"})


def test_a_local_teacher_s_options_are_those_of_its_loader() -> None:
    spec = LocalTeacherSpec(path="x", dtype="bfloat16", adapter="y", device_map="auto", quantization={"bits": 4})
    assert spec.load_kwargs() == {
        "dtype": "bfloat16",
        "trust_remote_code": False,
        "adapter": "y",
        "device_map": "auto",
        "quantization_config": {"bits": 4},
    }


def test_the_recipes_defaults_are_the_classes() -> None:
    parameters = inspect.signature(ServerTeacher).parameters
    arguments = ServerSpec(url="http://a").arguments()
    assert arguments.pop("urls") == ["http://a"]
    assert arguments == {name: parameters[name].default for name in arguments}
    assert parameters.keys() - arguments.keys() == {"urls", "backoff"}


@pytest.mark.parametrize(
    "teacher",
    [
        "http://host:8000",
        {"urls": ["http://a", "https://b/v1"], "model": "m", "api_key_env": "TEACHER_KEY", "tokenizer": "org/name"},
        {"by_task": {"math": "http://a", "logic": {"path": "x", "dtype": "float16"}}},
        {"path": "x", "revision": "main"},
        {"path": "x", "alignment": "spans"},
        {"path": "x", "adapter": "y", "device_map": "auto", "quantization": {"load_in_8bit": True}},
        {"url": "http://a", "tokenizer": "org/name", "alignment": "spans"},
    ],
)
def test_a_recipe_written_out_reads_back_the_same(teacher: Any, tmp_path: Path) -> None:
    made = recipe(teacher)
    path = tmp_path / "mine.yaml"
    path.write_text(made.to_yaml(), encoding="utf-8")
    assert Recipe.resolve(str(path)) == made


@pytest.mark.parametrize(
    ("teacher", "words"),
    [
        ({"path": "x", "url": "http://a"}, "teacher: give one of path (a model in this process), url"),
        ({"url": "http://a", "urls": ["http://b"]}, "not url and urls"),
        ({"by_task": {"m": "x"}, "path": "x"}, "not path and by_task"),
        ({"path": "x", "alignment": "words"}, "teacher.alignment: "),
        ({"url": "http://a", "alignment": "spans"}, "teacher.tokenizer: alignment spans needs it"),
        (
            {"by_task": {"m": {"path": "x", "alignment": "spans"}}},
            "teacher.by_task.m.alignment: must be tokens: spans is for a teacher that scores every task",
        ),
        ({"modle": "x"}, "teacher: needs path (a model in this process), url or urls (a served one), by_task, or"),
        ({"url": None}, "teacher: a served teacher needs url or urls"),
        ({"url": "http://a", "retrys": 3}, "teacher.retrys: unknown key; did you mean teacher.retries?"),
        ({"url": "http://a", "dtype": "float32"}, "teacher.dtype: unknown key"),
        ({"url": "http://a", "api_key": KEY}, "teacher.api_key: unknown key; did you mean teacher.api_key_env?"),
        ({"path": "x", "concurrency": 3}, "teacher.concurrency: unknown key"),
        ({"url": "http://a", "concurrency": 0}, "teacher.concurrency: should be greater than or equal to 1, not 0"),
        ({"url": "http://a", "retries": "3"}, "teacher.retries: should be a valid integer, not '3'"),
        ({"url": "http://a", "timeout": 0}, "teacher.timeout: should be greater than 0"),
        ({"url": "http://a", "timeout": float("nan")}, "teacher.timeout: should be a finite number"),
        ({"url": 8000}, "teacher.url: should be a valid string, not 8000"),
        ({"urls": "http://a"}, "teacher.urls: should be a valid list, not 'http://a'"),
        ({"urls": []}, "teacher.urls: List should have at least 1 item"),
        ({"urls": ["http://a", "http://a/v1"]}, "teacher.urls: the same server is there twice"),
        ({"url": "host:8000"}, "teacher: a teacher's URL is written http://host:port, not 'host:8000'"),
        ({"by_task": ["x"]}, "teacher.by_task: must map each task to a teacher"),
        ({"by_task": {}}, "teacher.by_task: must map each task to a teacher"),
        ({"by_task": {"m": "x"}, "colum": "k"}, "teacher.colum: unknown key; did you mean teacher.column?"),
        ({"by_task": {"m": {"url": "http://a", "modle": "x"}}}, "teacher.by_task.m.modle: unknown key; did you mean "),
        ({"by_task": {"m": {"by_task": {"n": "x"}}}}, "teacher.by_task.m: must be one teacher"),
        ({"by_task": {"m": None}}, "teacher.by_task.m: must be one teacher"),
        ({"by_task": {"m": {"adapter": "y"}}}, "teacher.by_task.m: must be one teacher, by path or url"),
        ({"adapter": "y"}, "teacher.adapter: on the student's own base it needs a student that is trained as an"),
        ({"adapter": "y", "dtype": "float32"}, "teacher.dtype: unknown key"),
        (7, "teacher: must be a path, a URL or a mapping, not 7"),
    ],
)
def test_mistakes_are_named_with_advice(teacher: Any, words: str) -> None:
    assert words in problem(teacher)


@pytest.mark.parametrize(
    ("teacher", "words"),
    [
        (f"http://me:{KEY}@host", "holds no user and password"),
        ({"url": f"https://{KEY}@host", "nonsense": 1}, "holds no user and password"),
        ({"urls": f"http://me:{KEY}@host"}, "holds no user and password"),
        ({"by_task": {"m": {"url": f"http://me:{KEY}@host"}}}, "holds no user and password"),
        ({"url": f"http://host/?key={KEY}"}, "without ? and #"),
        ({"url": "http://host", "api_key_env": KEY}, "must be the name of an environment variable"),
        ({"url": "http://host", "api_key_env": [KEY]}, "must be the name of an environment variable"),
        ({"url": "http://host", "api_key": KEY}, "unknown key"),
    ],
)
def test_a_secret_is_refused_and_not_repeated(teacher: Any, words: str) -> None:
    sentence = problem(teacher)
    assert words in sentence and KEY not in sentence


def test_a_served_teacher_needs_temperature_1() -> None:
    for teacher in ("http://a", {"by_task": {"m": "embedded:teacher", "n": "http://a"}}):
        sentence = problem(teacher, trainer={"use_cpu": True, "bf16": False, "temperature": 0.7})
        assert sentence.startswith("trainer.temperature: 0.7 does not fit a served teacher: vLLM's prompt_logprobs are")
    warm = {"use_cpu": True, "bf16": False, "temperature": 0.7}
    assert recipe("embedded:teacher", trainer=warm).trainer["temperature"] == 0.7
    assert recipe("http://a", trainer=warm, method="grpo").trainer["temperature"] == 0.7  # it is not asked
    assert recipe("http://a", trainer={**warm, "temperature": 1}).trainer["temperature"] == 1


def test_overrides_reach_into_a_served_teacher(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE + "teacher: http://host:8000\n", encoding="utf-8")
    made = Recipe.resolve(str(path), ["teacher.timeout=7", "teacher.model=m"]).teacher
    assert made == ServerSpec(url="http://host:8000", timeout=7, model="m")
    assert Recipe.resolve(str(path), ["teacher=http://b"]).teacher == ServerSpec(url="http://b")
    with pytest.raises(RecipeError, match=r"an override replaces all of it when written teacher=\.\.\."):
        Recipe.resolve(str(path), ["teacher.path=embedded:teacher"])


def test_where_a_teacher_is_served_may_change_when_a_run_goes_on() -> None:
    def kept(teacher: Any) -> Any:
        return trained_by(recipe(teacher).model_dump()["teacher"])

    moved = {"url": "http://b", "retries": 0, "timeout": 5, "concurrency": 1, "api_key_env": "K", "model": "m"}
    assert kept({"url": "http://a", "model": "m"}) == kept(moved)
    assert kept({"url": "http://a", "model": "m"}) != kept({"url": "http://a", "model": "n"})
    assert kept({"by_task": {"t": "http://a"}}) == kept({"by_task": {"t": "http://b"}})
    assert kept({"by_task": {"t": "http://a"}}) != kept({"by_task": {"u": "http://a"}})
    assert kept("embedded:teacher") != kept("embedded:student") and kept("x") != kept("http://a")


# --- rlad check


def checked(tmp_path: Path, capsys: pytest.CaptureFixture[str], teacher: str, *overrides: str) -> tuple[int, str, str]:
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE + f"teacher: {teacher}\n", encoding="utf-8")
    code = main(["check", str(path), *overrides])
    out, err = capsys.readouterr()
    return code, out, err


def test_check_says_what_a_server_serves_now(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with StubTeacher(models=["big"]) as stub:
        code, out, _ = checked(tmp_path, capsys, stub.url)
        assert code == 0 and not stub.bodies  # nothing is scored
        assert f"teacher   served at {stub.url}: concurrency 32, timeout 120.0, retries 6, alignment tokens\n" in out
        assert f"            now: {stub.url} answers and serves big\n" in out
        code, out, _ = checked(tmp_path, capsys, f"{{url: '{stub.url}', model: small}}")
        assert code == 0 and "now: the teacher at" in out and "does not serve 'small': it serves big" in out
        code, out, _ = checked(tmp_path, capsys, stub.url, "method=grpo")
        assert "not loaded: grpo needs none" in out and "now:" not in out
    code, out, _ = checked(tmp_path, capsys, stub.url)
    assert code == 0  # it can be started after the check
    assert f"now: the teacher at {stub.url} does not answer: cannot connect" in out


def test_check_does_not_wait_for_a_server_that_hangs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rlad.teacher import server

    defaults = list(server.look.__defaults__ or ())
    assert defaults == [None, 3.0]
    monkeypatch.setattr(server.look, "__defaults__", (None, 0.2))

    class Hung(StubTeacher):
        def may_answer(self, handler: Any) -> bool:
            hung(handler, {})
            return False

    with Hung() as stub:
        started = time.monotonic()
        code, out, _ = checked(tmp_path, capsys, stub.url)
        assert code == 0 and "does not answer: no whole answer within 0.2 s" in out
        assert time.monotonic() - started < 10.0


def test_check_shows_each_teacher_of_several(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with StubTeacher() as stub:
        section = f"{{by_task: {{math: '{stub.url}', logic: embedded:teacher}}, column: kind}}"
        code, out, _ = checked(tmp_path, capsys, section)
    assert code == 0
    assert "teacher   by column kind\n          math: served at http" in out
    assert "answers and serves stub\n          logic: embedded:teacher (" in out


def test_check_finds_what_is_missing_around_a_served_teacher(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TEACHER_KEY", raising=False)
    section = (
        "{by_task: {math: {url: 'http://127.0.0.1:9', api_key_env: TEACHER_KEY, tokenizer: ./nowhere}, b: ./gone}}"
    )
    code, _, err = checked(tmp_path, capsys, section)
    assert code == 2
    assert "error: teacher.by_task.math.api_key_env: the environment variable TEACHER_KEY is not set" in err
    assert "error: teacher.by_task.math.tokenizer: there is no folder nowhere" in err
    assert "error: teacher.by_task.b.path: there is no folder gone" in err
    monkeypatch.setenv("TEACHER_KEY", KEY)
    code, out, err = checked(tmp_path, capsys, "{url: 'http://127.0.0.1:9', api_key_env: TEACHER_KEY}")
    assert code == 0 and "api_key_env TEACHER_KEY" in out and KEY not in out + err
