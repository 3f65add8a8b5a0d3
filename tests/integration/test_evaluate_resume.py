"""An evaluation that is killed and goes on ends as one that was not; and what is compared, scored and exported."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import tiny
from rlad.cli.main import main
from rlad.errors import RladError
from rlad.evaluation.store import LOCK
from rlad.files import FileLock, whole_file
from rlad.records import part, parts, read_rows

COMMON = ["--task", "knights_knaves", "--people", "2-3", "--max-new-tokens", "24", "--temperature", "1"]
DRAWN = ("order", "sample", "seed", "response", "tokens", "truncated", "value", "extracted", "format_ok")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny.save(1, tmp_path_factory.mktemp("model"))


def drawn(folder: Path) -> list[tuple[Any, ...]]:
    return sorted(tuple(row[name] for name in DRAWN) for row in read_rows(folder, "response"))


def evaluated(*arguments: str) -> list[str]:
    return ["evaluate", *arguments, *COMMON]


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_to_the_same_result(model: str, tmp_path: Path) -> None:
    size = ["--puzzles", "30", "--samples", "4", "--batch-size", "4"]
    killed = evaluated(model, *size, "--records", str(tmp_path / "killed"))
    process = subprocess.Popen(
        [sys.executable, "-c", "import sys; from rlad.cli.main import main; sys.exit(main())", *killed],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    deadline = time.monotonic() + 120
    while len(parts(tmp_path / "killed")) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    left = len(parts(tmp_path / "killed"))
    assert 2 <= left < 30  # of 30 * 4 / 4 batches
    (tmp_path / "killed" / ".part-000099.parquet.x").write_bytes(b"half")  # as a kill in the middle of a write leaves
    before = part(tmp_path / "killed", 0).stat().st_mtime_ns

    assert main([*killed, "--output", str(tmp_path / "killed.json")]) == 0
    assert main([*evaluated(model, *size), "--records", str(tmp_path / "whole")]) == 0
    assert main([*evaluated(model, *size), "--output", str(tmp_path / "none.json")]) == 0
    assert part(tmp_path / "killed", 0).stat().st_mtime_ns == before  # nothing is made twice
    assert len(drawn(tmp_path / "whole")) == 120
    assert drawn(tmp_path / "killed") == drawn(tmp_path / "whole")
    one, other = (json.loads((tmp_path / name).read_text()) for name in ("killed.json", "none.json"))
    assert one["summary"] == other["summary"]
    for problem in other["problems"]:
        problem["responses"] = []  # they are in the records
    assert one["problems"] == other["problems"]


def test_a_finished_evaluation_is_read_and_another_way_is_refused_by_name(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    usual = evaluated(model, "--puzzles", "4", "--samples", "2", "--records", "run")
    assert main(usual) == 0
    table = capsys.readouterr().out
    monkeypatch.setattr("rlad.evaluation.models.ModelName.load", lambda _: pytest.fail("there is nothing to generate"))
    assert main([*usual, "--batch-size", "3"]) == 0  # it changes no draw
    assert capsys.readouterr().out == table
    assert main([*usual, "--pass-at", "1,2"]) == 0
    assert "pass@2" in capsys.readouterr().out
    for change, says in (
        (["--top-p", "0.5"], "top_p was 0.95 and is 0.5"),
        (["--seed", "3"], "seed was 0 and is 3"),
        (["--append", "<think>\\n"], "append was '' and is '<think>\\n'"),
        (["--split", "validation"], "the problems are others; split was 'test' and is 'validation'"),
        (["--puzzles", "6"], "the problems are others"),
        (["--samples", "3"], "samples was 2 and is 3"),
        (["--dtype", "bfloat16"], "dtype was None and is 'bfloat16'"),
    ):
        assert main([*usual, *change]) == 2
        err = capsys.readouterr().err
        assert says in err and "--restart" in err
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert main([*usual, "--seed", "3", "--restart"]) == 0
    assert {row["sample"] for row in read_rows("run", "response")} == {0, 1}
    (aside,) = tmp_path.glob("run.*")
    assert drawn(aside) != drawn(tmp_path / "run")


def test_other_weights_under_the_same_name_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny.save(1, tmp_path / "model")
    usual = evaluated(model, "--puzzles", "2", "--records", str(tmp_path / "run"))
    assert main(usual) == 0
    tiny.save(2, tmp_path / "model")
    assert main(usual) == 2
    assert "revision was 'sha256:" in capsys.readouterr().err


def test_records_say_how_they_were_made(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = evaluated(model, "--puzzles", "2", "--records", str(tmp_path / "run"))
    monkeypatch.setattr(sys, "argv", ["rlad", *arguments])
    assert main() == 0
    for row in read_rows(tmp_path / "run", "response"):
        assert (
            row["model"] == model and row["revision"].startswith("sha256:") and row["command"].startswith("rlad eval")
        )
        assert json.loads(row["settings"])["temperature"] == 1.0
        example = json.loads(row["example"])
        assert json.loads(row["prompt"]) == example["prompt"] and len(example["names"]) == int(row["difficulty"])


def test_against_another_run(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = ["--puzzles", "4", "--samples", "2"]
    assert main(evaluated(model, *size, "--records", str(tmp_path / "run"), "--output", str(tmp_path / "a.json"))) == 0
    for other in ("run", "a.json"):
        arguments = [*evaluated(model, *size), "--against", str(tmp_path / other), "--output", str(tmp_path / "b.json")]
        assert main(arguments) == 0
        out, err = capsys.readouterr()
        assert "in pairs" in out and "warning" not in err
    against = json.loads((tmp_path / "b.json").read_text())["against"]
    assert [row["difficulty"] for row in against["rows"]] == ["2", "3", "average", "all"]
    assert all(row["difference"] == 0 and row["p_value"] == 1 for row in against["rows"])  # the same draws
    assert against["differing"] == []
    assert main([*evaluated(model, *size), "--top-p", "1", "--against", str(tmp_path / "a.json")]) == 0
    assert "not made alike: top_p: 0.95 and 1.0" in capsys.readouterr().err
    for arguments, says in (
        (["--puzzles", "2", "--against", "a.json"], "of 4 and 2, 2 are shared"),
        (["--puzzles", "4", "--against", "none"], "there is no evaluation at"),
    ):
        arguments[-1] = str(tmp_path / arguments[-1])
        assert main(evaluated(model, *arguments)) == 2
        assert says in capsys.readouterr().err
    part(tmp_path / "run", 0).rename(tmp_path / "elsewhere.parquet")
    assert main([*evaluated(model, *size), "--batch-size", "2", "--records", str(tmp_path / "two")]) == 0
    part(tmp_path / "two", 3).unlink()
    assert main([*evaluated(model, *size), "--against", str(tmp_path / "two")]) == 2
    assert "has 6 of 8 responses: the command that began it will finish it" in capsys.readouterr().err


def test_responses_made_elsewhere_and_an_export(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is exported, and the records, score as they did; without a model."""
    size, lines = ["--puzzles", "4", "--samples", "2"], str(tmp_path / "samples.jsonl")
    assert main([*evaluated(model, *size), "--records", str(tmp_path / "run"), "--export", "lm-eval", lines]) == 0
    table = capsys.readouterr().out.splitlines()[1:4]
    for name in ("run", "samples.jsonl", "run/part-000000.parquet"):
        arguments = ["evaluate", "--task", "knights_knaves", "--people", "2-3", "--puzzles", "4"]
        assert main([*arguments, "--responses", str(tmp_path / name), "--output", str(tmp_path / "b.json")]) == 0
        kept = json.loads((tmp_path / "b.json").read_text())
        assert kept["settings"]["samples"] == 2 and kept["settings"]["model"] == str(tmp_path / name)
        printed = capsys.readouterr().out.splitlines()[1:4]
        # lm-eval's samples have no lengths
        assert [line.split()[:12] for line in printed] == [line.split()[:12] for line in table]
        assert (printed == table) == (name != "samples.jsonl")


LETTERS = ["evaluate", "--task", "letters_task:Letters", "--puzzles", "2"]


def answered(folder: Path, *counts: int) -> str:
    """A file with so many responses to each problem of the task letters."""
    rows = [json.dumps({"index": i, "responses": ["abc"] * count}) for i, count in enumerate(counts)]
    (folder / "responses.jsonl").write_text("\n".join(rows), "utf-8")
    return str(folder / "responses.jsonl")


def test_a_file_of_responses_that_changed_is_not_given_the_scores_of_what_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*LETTERS, "--responses", answered(tmp_path, 1, 1), "--records", str(tmp_path / "kept")]
    assert main(command) == main(command) == 0
    rows = [json.dumps({"index": i, "response": text}) for i, text in enumerate(("abc", "xyz"))]
    (tmp_path / "responses.jsonl").write_text("\n".join(rows), "utf-8")
    capsys.readouterr()
    assert main(command) == 2
    out, err = capsys.readouterr()
    assert out == "" and "responses_sha256 was" in err and "begin anew with --restart" in err


def test_a_reward_function_that_changed_is_not_mixed_with_what_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    scorer, prompts = Path("rewards_of_resume_test.py"), Path("prompts.jsonl")
    scorer.write_text("def reward(response, example):\n    return 1.0\n", "utf-8")
    prompts.write_text('{"prompt": "a"}\n{"prompt": "b"}\n', "utf-8")
    task = "{prompts: prompts.jsonl, evaluation_prompts: prompts.jsonl, reward: 'rewards_of_resume_test:reward'}"
    command = ["evaluate", "--task", task, "--responses", answered(tmp_path, 1, 1), "--records", "kept"]
    assert main(command) == main(command) == 0
    scorer.write_text("def reward(response, example):\n    return 0.0\n", "utf-8")
    capsys.readouterr()
    assert main(command) == 2
    out, err = capsys.readouterr()
    assert out == "" and "the scorer is another, or its source file has changed" in err and "--restart" in err
    assert main([*command, "--restart"]) == 0


def test_a_folder_that_is_written_to_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*LETTERS, "--responses", answered(tmp_path, 1, 1), "--records", str(tmp_path / "kept")]
    (tmp_path / "kept").mkdir()
    with FileLock(tmp_path / "kept" / LOCK):
        for more in ([], ["--restart"]):
            assert main([*command, *more]) == 2
            err = capsys.readouterr().err
            assert err.count("\n") == 1 and f"{tmp_path / 'kept'} is being written to by another evaluation" in err
    assert not list(tmp_path.glob("kept.*")) and main([*command, "--restart"]) == 0


def test_a_lone_surrogate_in_a_response_costs_no_score(tmp_path: Path) -> None:
    rows = [r'{"index": 0, "response": "abc\ud800"}', r'{"index": 1, "response": "abc"}']
    (tmp_path / "responses.jsonl").write_text("\n".join(rows), "utf-8")
    kept = str(tmp_path / "kept")
    assert main([*LETTERS, "--responses", str(tmp_path / "responses.jsonl"), "--records", kept]) == 0
    assert [row["response"] for row in read_rows(kept, "response", ["response"])] == ["abc?", "abc"]


def test_other_problems_are_found_before_anything_is_loaded_or_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other, kept = str(tmp_path / "other.json"), tmp_path / "kept"
    assert main([*LETTERS[:-1], "1", "--responses", answered(tmp_path, 1), "--output", other]) == 0
    responses = answered(tmp_path, 1, 1)
    capsys.readouterr()
    kept.mkdir()
    monkeypatch.setattr("rlad.evaluation.models.ModelName.load", lambda _: pytest.fail("a model was loaded"))
    monkeypatch.setattr("rlad.evaluation.models.ModelName.which_weights", lambda _: pytest.fail("a model was read"))
    monkeypatch.setattr("letters_task.Letters.score", lambda *_: pytest.fail("a response was scored"))
    for what in (["embedded:student"], ["--responses", responses]):
        assert main([*LETTERS, *what, "--against", other, "--records", str(kept), "--restart"]) == 2
        out, err = capsys.readouterr()
        assert out == "" and "not of the same problems" in err and "of 1 and 2, 1 are shared" in err
        assert kept.is_dir() and not list(tmp_path.glob("kept.*"))  # nor is anything set aside


def test_too_few_responses_for_a_k_are_found_before_they_are_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    responses = answered(tmp_path, 4, 1)  # of each problem, not on average
    assert main([*LETTERS, "--responses", responses, "--pass-at", "1"]) == 0
    capsys.readouterr()
    monkeypatch.setattr("letters_task.Letters.score", lambda *_: pytest.fail("a response was scored"))
    for ks, says in (("1,4", "pass@4 needs at least 4 samples of each problem, not 1"), ("0", "k from 1 on")):
        assert main([*LETTERS, "--responses", responses, "--pass-at", ks]) == 2
        out, err = capsys.readouterr()
        assert out == "" and says in err


def test_a_comparison_that_fails_costs_neither_the_json_nor_the_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: Any) -> None:
        raise RladError("no comparison")

    result, samples = tmp_path / "a.json", tmp_path / "samples.jsonl"
    arguments = [*LETTERS, "--responses", answered(tmp_path, 1, 1), "--output"]
    assert main([*arguments, str(result)]) == 0
    alone = json.loads(result.read_text())
    compared = ["--against", str(result), "--export", "lm-eval", str(samples)]
    assert main([*arguments, str(tmp_path / "b.json"), *compared]) == 0
    with_it = json.loads((tmp_path / "b.json").read_text())
    assert with_it.pop("against")["run"] == str(result) and with_it == alone
    samples.unlink()
    capsys.readouterr()
    monkeypatch.setattr("rlad.evaluation.pairs.compare", fails)
    for output in (str(tmp_path / "c.json"), "-"):
        assert main([*arguments, output, *compared]) == 2
        out, err = capsys.readouterr()
        assert "error: no comparison" in err
        assert json.loads(out if output == "-" else Path(output).read_text()) == alone
        assert len(samples.read_text().splitlines()) == 2
        samples.unlink()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["x"], "say what to evaluate on"),
        (["--task", "knights_knaves"], "say which model"),
        (["x", "--task", "knights_knaves", "--backend", "sglang"], "one of transformers, vllm, server"),
        (["x", "--task", "knights_knaves", "--backend", "server"], "needs --url"),
        (["x", "--task", "knights_knaves", "--url", "http://localhost:1"], "are for --backend server"),
        (["x", "--task", "knights_knaves", "--backend", "server", "--dtype", "auto"], "are the server's affair"),
        (
            ["--task", "knights_knaves", "--responses", "x", "--top-p", "1", "--seed", "0"],
            "with --responses nothing is generated, so --top-p, --seed would do nothing",
        ),
        (["x", "--task", "knights_knaves", "--engine", "{a: 1}"], "is for --backend vllm"),
        (["x", "--task", "knights_knaves", "--engine", "{a"], "--engine is not YAML"),
        (["x", "--task", "knights_knaves", "--template", "[1]"], "--template must be a mapping"),
        (["x", "--task", "knights_knaves", "--pass-at", "1,a"], "whole numbers, such as 1,8,32"),
        (
            ["x", "--task", "knights_knaves", "--pass-at", "1,8"],
            "pass@8 needs at least 8 samples of each problem, not 1",
        ),
        (["x", "--task", "knights_knaves", "--pass-at", "0"], "k from 1 on"),
        (["x", "--task", "knights_knaves", "--dtype", "int4"], "dtype must be one of"),
        (["x", "--task", "knights_knaves", "--base", "y"], "is no adapter folder"),
        (["x", "--task", "knights_knaves", "--prompt-format", "raw", "--template", "{a: 1}"], "would do nothing"),
        (["x", "--task", "knights_knaves", "--restart"], "say which folder"),
        (["x", "--task", "knights_knaves", "--export", "csv", "y"], "knows the format lm-eval"),
        (["x", "--task", "knights_knaves", "--output", "."], "it is a folder"),
        (["x", "--task", "knights_knaves", "--samples", "2", "--temperature", "0"], "ask for 1"),
        (["--task", "knights_knaves", "--responses", "nowhere.jsonl"], "there is no file of responses nowhere.jsonl"),
    ],
)
def test_mistakes_are_found_before_anything_is_loaded(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlad.evaluation.models.ModelName.load", lambda _: pytest.fail("a model was loaded"))
    monkeypatch.setattr("rlad.evaluation.models.ModelName.which_weights", lambda _: pytest.fail("a model was read"))
    assert main(["evaluate", *arguments]) == 2
    assert says in capsys.readouterr().err


def test_where_nothing_can_be_written_and_what_data_are_of_is_said_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    inside = str(tmp_path / "file" / "a.json")
    for option in (["--output", inside], ["--export", "lm-eval", inside], ["--output", str(tmp_path)]):
        assert main(["evaluate", "nobody", "--task", "letters_task:Letters", *option]) == 2
        assert "error: cannot write" in capsys.readouterr().err
    assert main(["evaluate", "nobody", "--task", "math", "--data", "gsm8k", "--split", "validation"]) == 2
    assert "--data is what --split test is of: leave --split out" in capsys.readouterr().err


def test_a_device_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with whole_file(pipe) as file:
        file.write(b"told")
    assert os.read(reader, 10) == b"told" and pipe.is_fifo()
    os.close(reader)
