"""`rlad teacher serve`: the command that it becomes, and where the key goes."""

from __future__ import annotations

import os
import shlex
import shutil
from typing import Any

import pytest
import typer

from rlad.cli.main import app, main
from rlad.models import resolve

KEY = "sk-very-secret-9f3a"


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    assert main(["teacher", "serve", "--print", *arguments]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return shlex.split(out)


def test_the_command_has_what_a_teacher_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, "org/name") == [
        *("vllm", "serve", "org/name", "--host", "127.0.0.1", "--port", "8000", "--dtype", "auto"),
        *(
            "--max-logprobs",
            "1",
            "--max-num-batched-tokens",
            "2048",
            "--tensor-parallel-size",
            "1",
            "--no-enable-prefix-caching",
        ),
    ]


def test_options_reach_vllm(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--host", "0.0.0.0", "--port", "8123", "--dtype", "float32", "--max-logprobs", "0"]
    options += [
        "--max-num-batched-tokens",
        "512",
        "--max-model-len",
        "4096",
        "--gpu-memory-utilization",
        "0.5",
        "--tensor-parallel-size",
        "4",
    ]
    words = printed(capsys, "org/name", *options, "--", "--enforce-eager", "--seed", "3", "a b")
    for name, value in zip(options[::2], options[1::2], strict=True):
        assert words[words.index(name) + 1] == value
    assert words[-5:] == ["--no-enable-prefix-caching", "--enforce-eager", "--seed", "3", "a b"]


def test_an_embedded_teacher_is_served_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    words = printed(capsys, "embedded:teacher")
    assert words[2:5] == [resolve("embedded:teacher"), "--served-model-name", "embedded:teacher"]


def test_vllm_takes_the_place_of_the_process_and_has_the_key_in_its_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Executed(Exception):
        pass

    calls: list[Any] = []

    def execve(*arguments: Any) -> None:
        calls.append(arguments)
        raise Executed

    monkeypatch.setattr(shutil, "which", {"vllm": "/somewhere/vllm"}.get)
    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.setenv("TEACHER_KEY", KEY)
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    with pytest.raises(Executed):
        main(["teacher", "serve", "org/name", "--api-key-env", "TEACHER_KEY"])
    ((program, command, environment),) = calls
    assert program == "/somewhere/vllm" and command[:3] == ["vllm", "serve", "org/name"]
    assert environment["VLLM_API_KEY"] == KEY and environment["PATH"] == os.environ["PATH"]
    assert KEY not in " ".join(command)
    printing = printed(capsys, "org/name", "--api-key-env", "TEACHER_KEY")
    assert printing[:2] == ["VLLM_API_KEY=$TEACHER_KEY", "vllm"]
    monkeypatch.delenv("TEACHER_KEY")
    assert main(["teacher", "serve", "org/name", "--api-key-env", "TEACHER_KEY"]) == 2
    assert "the environment variable TEACHER_KEY is not set" in capsys.readouterr().err
    assert len(calls) == 1


def test_without_vllm_the_command_is_printed_and_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert main(["teacher", "serve", "org/name"]) == 2
    out, err = capsys.readouterr()
    assert out.startswith("vllm serve org/name ") and out.count("\n") == 1
    assert err.startswith("error: vllm is not installed here") and "pip install 'trl[vllm]'" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Missing command"),
        (["serve"], "Missing argument"),
        (["serve", "embedded:pupil"], "there is no embedded model"),
        (["serve", "x", "--prot", "3"], "No such option: --prot"),
        (["serve", "x", "--port", "0"], "--port"),
        (["serve", "x", "--gpu-memory-utilization", "2"], "--gpu-memory-utilization"),
    ],
)
def test_a_users_mistake_is_one_line_and_status_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["teacher", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and words in err


def test_every_option_is_explained() -> None:
    groups: Any = typer.main.get_command(app)
    for command in groups.commands["teacher"].commands.values():
        assert command.help
        for parameter in command.params:
            assert getattr(parameter, "help", None), parameter.name
