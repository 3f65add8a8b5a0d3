"""The command line: what it prints, what it returns, and that a user's mistake is one line."""

from __future__ import annotations

import io
import json
import math
import os
import shlex
import subprocess
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import typer

import made_runs
from rlad import __version__
from rlad.cli.grade import verdicts
from rlad.cli.main import app, main
from rlad.errors import RladError
from rlad.tasks import Score

RECIPE = """
model: student
teacher: teacher
task: {name: knights_knaves, people: [2, 3]}
method: {name: rlad, alpha: 0.25}
trainer:
  use_cpu: true
  bf16: false
  max_steps: 12
  per_device_train_batch_size: 16
  gradient_accumulation_steps: 2
  num_iterations: 2
  save_steps: 6
  learning_rate: 1e-4
evaluate: {puzzles: 30, samples: 2}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with a recipe, and folders that look like its models."""
    monkeypatch.chdir(tmp_path)
    for name in ("student", "teacher"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(RECIPE, encoding="utf-8")
    return tmp_path


def graded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], lines: list[bytes], *options: str
) -> tuple[int, list[dict[str, Any]], str]:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"".join(line + b"\n" for line in lines))))
    status = main(["grade", "knights_knaves", *options])
    out, err = capsys.readouterr()
    return status, [json.loads(line) for line in out.splitlines()], err


def puzzle(answer: str) -> bytes:
    response = f"<think>so</think><answer>{answer}</answer>"
    return json.dumps({"response": response, "names": ["Zoey", "Otto"], "solution": [True, False]}).encode()


RIGHT = puzzle("(1) Zoey is a knight\n(2) Otto is a knave")
WRONG = puzzle("(1) Zoey is a knave\n(2) Otto is a knave")


def test_help_names_every_command_and_imports_nothing_heavy() -> None:
    program = (
        "import sys\nfrom rlad.cli.main import main\nstatus = main(['--help'])\n"
        "heavy = 'torch transformers trl datasets accelerate pydantic omegaconf yaml numpy rich scipy'.split()\n"
        "print(sorted(set(heavy) & set(sys.modules)), status)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[] 0"
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert {"train", "teacher", "compare"} < set(commands)
    for command in commands:
        assert f"\n  {command} " in done.stdout, command


def test_without_arguments_help_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "Usage: rlad" in capsys.readouterr().out


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"rlad {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["frobnicate"], "No such command"),
        (["train"], "Missing argument"),
        (["train", "quickstart", "--reusme"], "No such option"),
        (["train", "quickstrat"], "did you mean 'quickstart'"),
        (["train", "quickstart", "method.alfa=1"], "did you mean method.alpha?"),
        (["train", "quickstart", "alpha"], "is not an override"),
        (["check", "nowhere.yaml"], "there is no recipe"),
        (["grade", "knight_knaves"], "did you mean 'knights_knaves'"),
        (["grade", "knights_knaves", "--scorer", "loose"], "logic-rl"),
        (["evaluate", "./nowhere", "--task", "knights_knaves"], "there is no model folder"),
        (["evaluate", "embedded:pupil", "--task", "knights_knaves"], "embedded:student"),
        (["evaluate", "x", "--task", "knights_knaves", "--people", "1-3"], "people must be"),
        (["evaluate", "x", "--task", "{name: ["], "--task is not YAML"),
        (["evaluate", "x", "--task", "{" * 100_000], "--task is not YAML"),
        (["evaluate", "x", "--task", "knights_knaves", "--output", ""], "--output and --export name a file"),
        (["evaluate", "x", "--task", "knights_knaves", "--data", "nowhere.jsonl"], "nowhere.jsonl"),
        (["evaluate", "x", "--task", "knights_knaves", "--samples", "0"], "--samples"),
    ],
)
def test_a_users_mistake_is_one_line_and_status_2(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ") and err.count("\n") == 1
    assert words in err


def run_with(monkeypatch: pytest.MonkeyPatch, train: Any) -> None:
    """Put `train` in the place of the real run."""
    module = types.ModuleType("rlad.trainer.run")
    module.train = train  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "rlad.trainer.run", module)


def test_train_passes_the_checked_recipe_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def train(recipe: Any, resume: bool) -> int:
        calls.append((recipe, resume))
        return 3

    run_with(monkeypatch, train)
    assert main(["train", "mine.yaml", "method.alpha=0.75", "--resume", "trainer.max_steps=8", "--output", "1"]) == 3
    recipe, resume = calls[0]
    assert resume is True
    assert recipe.make_method().alpha == 0.75
    assert recipe.trainer["max_steps"] == 8
    assert recipe.output == "1"
    assert main(["train", "mine.yaml"]) == 3
    assert calls[1][1] is False and calls[1][0].output == "runs/mine"


def test_ctrl_c_is_status_130(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(recipe: Any, resume: bool) -> int:
        raise KeyboardInterrupt

    run_with(monkeypatch, train)
    assert main(["train", "mine.yaml"]) == 130


def test_an_error_while_running_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(recipe: Any, resume: bool) -> int:
        raise RladError("the teacher\nwent away: start it again")

    run_with(monkeypatch, train)
    assert main(["train", "mine.yaml"]) == 2
    assert capsys.readouterr().err == "error: the teacher went away: start it again\n"


def test_check_says_what_would_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "mine.yaml"]) == 0
    out = capsys.readouterr().out
    for words in (
        "student   student",
        "rlad: clip_low 0.2, clip_high 0.28, alpha 0.25, teacher_clip 1.0",
        "(S/old)^alpha (S/T)^(1-alpha)",
        "knights_knaves: people [2, 3]",
        "12 updates of 32 rollouts; generates 32 rollouts at a time (4 prompts x 8), each used 2 times; "
        "checkpoints at multiples of 2",
        "0.0001   (TRL: 1e-06)",
        "30 problems of the test split, before and after; 2 responses each",
        "runs/mine (will be made)",
        "nothing wrong was found",
    ):
        assert words in out
    assert "num_generations" not in out  # as in TRL
    assert not (folder / "runs").exists()


def test_check_warns_of_what_is_rarely_meant(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "mine.yaml"]) == 0
    assert "caution" not in capsys.readouterr().out
    assert main(["check", "mine.yaml", "trainer.top_p=0.9"]) == 0
    assert "caution: trainer.top_p: 0.9: tokens would be drawn from another distribution" in capsys.readouterr().out


def test_check_reads_a_recipe_of_sft(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("sft.yaml").write_text(
        "model: student\nteacher: null\ntask: knights_knaves\nsft: {traces: mine}\noutput: runs/x\n"
        "trainer: {max_steps: 7, per_device_train_batch_size: 4, gradient_accumulation_steps: 3}\n"
    )
    assert main(["check", "sft.yaml"]) == 2
    said = capsys.readouterr()
    assert "error: sft.traces: there is no folder mine, and no teacher to make it with" in said.err
    Path("mine").mkdir()
    assert main(["check", "sft.yaml"]) == 0
    said = capsys.readouterr()
    for words in ("(for rlad sft)", "teacher   none: the traces are there", "7 updates of 12 traces", "traces    mine"):
        assert words in said.out
    assert main(["check", "sft.yaml", "sft.traced=x", "trainer.max_stps=3"]) == 2
    said = capsys.readouterr()
    assert "sft.traced: unknown key; did you mean sft.traces?" in said.err and "trainer.max_stps" in said.err


def test_check_says_where_a_run_could_go_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from rlad.trainer.trainer import STATE_FILE

    (folder / "runs" / "mine").mkdir(parents=True)
    assert main(["check", "mine.yaml"]) == 0
    assert "runs/mine (exists)" in capsys.readouterr().out
    for step, whole in ((6, True), (10, True), (12, False)):
        checkpoint = folder / "runs" / "mine" / "checkpoints" / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True)
        if whole:
            (checkpoint / STATE_FILE).write_text("{}", encoding="utf-8")
    assert main(["check", "mine.yaml"]) == 0
    assert "runs/mine (has checkpoint-10: --resume goes on from it)" in capsys.readouterr().out


def test_check_says_which_teacher_is_not_used(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "mine.yaml", "method=grpo"]) == 0
    assert "not loaded: grpo needs none" in capsys.readouterr().out


def test_check_finds_everything_at_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "mine.yaml", "seed=x", "method.alpha=7", "trainer.delta=2.0"]) == 2
    err = capsys.readouterr().err
    assert [line.split(":")[0] for line in err.splitlines()[:-1]] == ["error"] * 3
    assert err.endswith("3 problems: nothing would run\n")


def test_check_looks_around(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Missing models, the task's own options, an output that is a file, and what TRL itself refuses."""
    (folder / "taken").write_text("", encoding="utf-8")
    (folder / "teacher" / "config.json").unlink()
    wrong = ["model=./nowhere", "task.poeple=[2]", "output=taken", "trainer.log_completions_hub_repo=me/mine"]
    assert main(["check", "mine.yaml", *wrong]) == 2
    errors = capsys.readouterr().err.splitlines()
    for words in ("model.path: there is no folder nowhere", "teacher.path: teacher holds no config.json", "poeple"):
        assert any(words in error for error in errors), words
    assert any("output: taken is a file" in error for error in errors)
    assert any("log_completions is False" in error for error in errors)
    assert len(errors) == 6


def test_check_reads_the_data_that_are_here(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "few.jsonl").write_text('{"prompt": "Who?"}\n{"prompt": "Why?"}\n', encoding="utf-8")
    prompts = "task={prompts: few.jsonl, reward: 'builtins:len', evaluation_prompts: few.jsonl}"
    cpu = ["trainer.use_cpu=true", "trainer.bf16=false"]
    for changed, words in (
        (["evaluate.puzzles=200"], "evaluate: few.jsonl has 2 prompts, fewer than the 200 asked for"),
        (["evaluate=null"], "the task has 2 training problems, and one generation takes"),
        (["evaluate=null", "trainer.validate={every: 2}"], "trainer.validate: "),
    ):
        assert main(["check", "mine.yaml", prompts, *cpu, *changed]) == 2
        assert f"error: {words}" in capsys.readouterr().err
    # Those on the hub are not asked for.
    assert main(["check", "mine.yaml", "task=math", "evaluate={puzzles: 30000}", *cpu]) == 0


def test_check_loads_no_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def made(*_: object, **__: object) -> None:
        raise AssertionError("a module was made")

    monkeypatch.setattr(torch.nn.Module, "__init__", made)
    assert main(["check", "mine.yaml"]) == 0


def test_grade_answers_every_line_in_order(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    status, verdicts, err = graded(monkeypatch, capsys, [RIGHT, WRONG, RIGHT])
    assert status == 0 and err == ""
    assert [verdict["correct"] for verdict in verdicts] == [True, False, True]
    assert all(verdict.keys() == {"value", "correct", "extracted", "explanation"} for verdict in verdicts)


def test_grade_takes_a_scorer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    _, verdicts, _ = graded(monkeypatch, capsys, [RIGHT, WRONG], "--scorer", "logic-rl")
    assert [verdict["value"] for verdict in verdicts] == [3.0, -0.5]


def test_a_line_to_grade_says_whether_its_prompt_opened_the_tag(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As Logic-RL's prompts do: the response then has no <think> of its own, and may have none."""
    lines = []
    for opened in (True, False):
        row = json.loads(RIGHT)
        for response in (row["response"].removeprefix("<think>"), row["response"]):
            said = {**row, "response": response, "prompt_ends_with_think_tag": opened}
            lines.append(json.dumps(said).encode())
    _, verdicts, _ = graded(monkeypatch, capsys, lines, "--scorer", "logic-rl")
    assert [verdict["value"] for verdict in verdicts] == [3.0, -3.0, -3.0, 3.0]


def test_grade_reports_bad_lines_with_their_number_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = [b"nonsense", b"[1]", b'{"response": 3}', b'{"response": "x"}', b"\xff", b"[" * 100_000]
    bad.append(b'{"response": "x", "names": ["Zoey"], "solution": ["yes"]}')
    status, verdicts, err = graded(monkeypatch, capsys, [RIGHT, *bad, WRONG])
    assert status == 1
    assert len(verdicts) == len(bad) + 2
    assert verdicts[0]["correct"] is True and verdicts[-1]["correct"] is False
    assert all(verdict.keys() == {"error"} for verdict in verdicts[1:-1])
    lines = err.splitlines()
    assert [line.split(":")[0] for line in lines[:-1]] == [f"line {number}" for number in range(2, len(bad) + 2)]
    assert lines[-1] == f"{len(bad)} lines could not be scored"


def test_grade_skips_blank_lines_and_a_byte_order_mark(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, found, err = graded(monkeypatch, capsys, [b"\xef\xbb\xbf" + RIGHT, b"", b" \r", b"nonsense", WRONG])
    assert status == 1 and [verdict.get("correct") for verdict in found] == [True, None, False]
    assert err.splitlines()[0].startswith("line 4:")  # blank ones count


class Odd:
    """A task whose scorer fails in its own ways."""

    name = "odd"

    def train(self) -> list[Any]:
        return []

    def evaluation(self, split: str = "test", count: int | None = None) -> list[Any]:
        return []

    def score(self, response: str, example: Any) -> Score:
        if response == "raises":
            return Score(1.0, example["answer"].strip() == "x", None, "")
        return Score({"nan": math.nan, "none": None}.get(response, 1.0), True, 3, "fine")  # type: ignore[arg-type]


class OddTogether(Odd):
    """The same, whose scorer fails for all lines that come together where it fails for one."""

    def score_many(self, responses: Sequence[str], examples: Sequence[Any]) -> list[Score]:
        return [self.score(response, example) for response, example in zip(responses, examples, strict=True)]


@pytest.mark.parametrize("task", [Odd(), OddTogether()])
def test_grade_goes_on_whatever_a_users_scorer_does(task: Any) -> None:
    lines = [b'{"response": "%s", "answer": 3}' % each for each in (b"raises", b"nan", b"none", b"fine")]
    found = [verdict for _, verdict in verdicts(task, io.BufferedReader(io.BytesIO(b"\n".join(lines))))]  # type: ignore[arg-type]
    assert found[0] == {"error": "AttributeError: 'int' object has no attribute 'strip'"}
    assert "finite number, not nan" in found[1]["error"] and "finite number, not None" in found[2]["error"]
    assert found[3] == {"value": 1.0, "correct": True, "extracted": "3", "explanation": "fine"}


def test_grade_of_nothing_is_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert graded(monkeypatch, capsys, []) == (0, [], "")


@pytest.mark.parametrize(
    ("command", "status", "says"),
    [
        ("grade knights_knaves <&-", 2, "one is closed"),
        ("grade knights_knaves < lines >&-", 2, "one is closed"),
        ("grade knights_knaves < lines > /dev/full", 2, "No space left on device"),
        ("report --help > /dev/full", 2, "No space left on device"),
    ],
)
def test_output_that_cannot_be_written_is_one_line(tmp_path: Path, command: str, status: int, says: str) -> None:
    (tmp_path / "lines").write_bytes(RIGHT + b"\n")
    shell = f"{shlex.quote(sys.executable)} -m rlad {command}"
    found = subprocess.run(shell, shell=True, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert found.returncode == status
    assert found.stderr.startswith("error: ") and found.stderr.count("\n") == 1 and says in found.stderr


def test_a_terminal_in_ascii_is_shown_what_it_can_show(tmp_path: Path) -> None:
    run = made_runs.save(tmp_path / "run", {1: [made_runs.rollout(1, 0, 0, [-1.0], gold="\u00e9\u2028")]})
    command = [sys.executable, "-m", "rlad", "show", str(run), "1/0"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0 and found.stderr == "" and "gold    \\xe9\\u27e8U+2028" in found.stdout


def test_train_says_that_a_recipe_is_one_of_sft(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "sft.yaml").write_text("model: x\nteacher: y\ntask: knights_knaves\nsft: {}\n")
    assert main(["train", "sft.yaml"]) == 2
    assert "is a recipe of rlad sft" in capsys.readouterr().err


def test_grade_answers_before_the_input_ends() -> None:
    """A program that waits for each verdict before it sends the next response is not kept waiting."""
    command = [sys.executable, "-c", "from rlad.cli.main import main; main()", "grade", "knights_knaves"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        for line, correct in ((RIGHT, True), (WRONG, False)):
            process.stdin.write(line + b"\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["correct"] is correct
        process.stdin.close()
        assert process.wait(timeout=60) == 0


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model of the embedded pair's architecture, with a tokenizer made from one puzzle."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from rlad.models.tokenizer import train_tokenizer
    from rlad.tasks import load_task

    folder = tmp_path_factory.mktemp("model")
    quizzes = [example["prompt"][-1]["content"] for example in load_task("knights_knaves").evaluation("test", 3)]
    tokenizer = train_tokenizer(quizzes, vocab_size=300)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=2048,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_evaluate_prints_a_table_and_writes_json(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["evaluate", str(tiny_model), "--task", "knights_knaves", "--people", "2-3", "--puzzles", "4"]
    common += ["--samples", "2", "--max-new-tokens", "4", "--seed", "5"]
    assert main([*common, "--output", str(tmp_path / "deep" / "result.json")]) == 0
    out = capsys.readouterr().out
    assert "people" in out and "pass@2" in out
    result = json.loads((tmp_path / "deep" / "result.json").read_text(encoding="utf-8"))
    assert [row["difficulty"] for row in result["summary"]] == ["2", "3", "average"]
    assert len(result["problems"]) == 4
    settings = result["settings"]
    assert (settings["temperature"], settings["top_p"], settings["samples"], settings["seed"]) == (0.6, 0.95, 2, 5)
    assert settings["task"] == {"name": "knights_knaves", "people": "2-3"}

    assert main([*common, "--output", "-"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["problems"] == result["problems"]
    assert "pass@2" in err


def test_evaluate_takes_a_file_and_options_of_the_task(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from rlad.tasks.knights_knaves.generate import generate

    rows = [json.dumps(puzzle.row()) for puzzle in generate(3, 2, seed=1, split="test")]
    (tmp_path / "held.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    task = "{name: knights_knaves, prompt: logic-rl, scorer: logic-rl-eval}"
    arguments = ["evaluate", str(tiny_model), "--task", task, "--data", str(tmp_path / "held.jsonl")]
    assert main([*arguments, "--max-new-tokens", "2", "--temperature", "0", "--output", "-"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert len(result["problems"]) == 2
    assert result["settings"]["task"]["evaluation_data"] == str(tmp_path / "held.jsonl")


def test_every_option_is_explained() -> None:
    group: Any = typer.main.get_command(app)
    for name, command in group.commands.items():
        assert command.help, name
        for parameter in command.params:
            assert getattr(parameter, "help", None), f"{name} {parameter.name}"
