"""Tasks by name, of your own, and Knights & Knaves from generator and files: what they give and what they refuse."""

import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from rlad.errors import RladError
from rlad.tasks import Score, Task, load_task, score_all
from rlad.tasks.knights_knaves.dataset import LOGIC_RL_INSTRUCTION, KnightsKnaves, parse_people
from rlad.tasks.knights_knaves.generate import SPLITS, generate, split_of
from rlad.tasks.knights_knaves.puzzle import Puzzle, fingerprint, parse_statements
from rlad.tasks.knights_knaves.rows import checked_puzzle, read_puzzles

# A task of one's own, in 20 lines.
MY_TASK = '''
from rlad.tasks import Score


class Sums:
    """Add two numbers."""

    name = "sums"

    def __init__(self, most: int = 9):
        self.most = most

    def _example(self, a, b):
        return {"prompt": [{"role": "user", "content": f"{a} + {b} = ?"}], "answer": a + b}

    def train(self):
        return [self._example(a, b) for a in range(self.most) for b in range(self.most) if (a + b) % 5]

    def evaluation(self, split="test", count=None):
        return [self._example(a, b) for a in range(self.most) for b in range(self.most) if (a + b) % 5 == 0][:count]

    def score(self, response, example):
        right = response.strip() == str(example["answer"])
        return Score(float(right), right, response.strip(), "right" if right else f"it is {example['answer']}")


def shorter_is_better(response, example):
    return 1.0 / len(response)


def is_right(response, example):
    return response == example["answer"]


def explains(response, example):
    return Score(0.5, True, response, "half a point")


def breaks(response, example):
    raise KeyError("answer")


def says_nothing(response, example):
    return None


def says_nan(response, example):
    return float("nan")


def scores_none(response, example):
    return Score(None, False, None, "")


def scores_text(response, example):
    return Score("1", False, None, "")


class Broken(Sums):
    def score_many(self, responses, examples):
        return {"fewer": [Score(1.0, True, None, "")], "none": [None] * len(responses)}[examples[0]["how"]]


NOT_A_TASK = 3
'''


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """A working directory with a module of tasks, under a name of its own so that no import is remembered."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    module = f"my_{abs(hash(request.node.nodeid))}"
    (tmp_path / f"{module}.py").write_text(MY_TASK)
    (tmp_path / "module_name").write_text(module)
    return tmp_path


def named(here: Path, attribute: str) -> str:
    return f"{(here / 'module_name').read_text()}:{attribute}"


def json_lines(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


# --- by name


def test_loading_a_task_is_light() -> None:
    code = (
        "import sys; from rlad.tasks import load_task; t = load_task('knights_knaves'); t.evaluation('test', 3)\n"
        "heavy = {'torch', 'transformers', 'trl', 'datasets', 'pyarrow', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("knight_knaves", "there is no task 'knight_knaves'; did you mean 'knights_knaves'"),
        ("", "task needs a name"),
        ({}, "task needs a name"),
        (7, "must be a name or a mapping"),
        ({1: 2}, "must be a name or a mapping"),
        ({"name": 7}, "task needs a name"),
        ({"name": "knights_knaves", "peple": 3}, "there is no option 'peple'; did you mean 'people'.*people, size"),
        ("json:loads:x", "must be written package.module:name"),
        (":Class", "must be written package.module:name"),
        ("no_such_module_here:Class", "importing no_such_module_here failed: ModuleNotFoundError"),
        ("json:Class", "json has no Class"),
        ("json:__name__", "must be a class"),
        ("fractions:Fraction", "Fraction is not a task: it has no name, train, evaluation, score"),
        ({"prompts": "x.jsonl"}, "missing a required argument: 'reward'"),
        ({"people": 3}, "a task without a name is one of prompts and reward"),
    ],
)
def test_what_is_no_task_is_refused(spec: Any, says: str) -> None:
    with pytest.raises(RladError, match=says):
        load_task(spec)


# --- your own


def test_a_task_of_your_own(here: Path) -> None:
    task = load_task({"name": named(here, "Sums"), "most": 4})
    assert isinstance(task, Task)
    assert len(task.train()) + len(task.evaluation()) == 16
    example = task.evaluation("test", 2)[1]
    assert example["prompt"] == [{"role": "user", "content": "2 + 3 = ?"}]
    assert task.score(" 5\n", example) == Score(1.0, True, "5", "right")
    assert not task.score("6", example).correct
    assert load_task(named(here, "Sums")).name == "sums"
    with pytest.raises(RladError, match=r"there is no option 'least'.*its options: most"):
        load_task({"name": named(here, "Sums"), "least": 4})
    with pytest.raises(RladError, match="must be a class"):
        load_task(named(here, "NOT_A_TASK"))


def test_a_module_that_breaks_when_imported(here: Path) -> None:
    (here / "broken_module_of_tasks.py").write_text("1 / 0")
    with pytest.raises(RladError, match="ZeroDivisionError: division by zero"):
        load_task("broken_module_of_tasks:Task")


PROMPTS = [
    {"prompt": "Say yes.", "answer": "yes", "difficulty": "easy"},
    {
        "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say no."}],
        "answer": "no",
        "difficulty": "hard",
    },
]


def test_prompts_and_a_reward_function(here: Path) -> None:
    data = json_lines(here / "prompts.jsonl", PROMPTS)
    spec = {"prompts": data, "reward": named(here, "is_right"), "evaluation_prompts": data}
    task = load_task(spec)
    first, second = task.train()
    assert first == {"prompt": [{"role": "user", "content": "Say yes."}], "answer": "yes", "difficulty": "easy"}
    assert second["prompt"] == PROMPTS[1]["prompt"]
    assert task.evaluation("test", 1) == [first]
    assert task.score("yes", first).correct and task.score("yes", first).value == 1.0
    assert not task.score("no", first).correct
    with pytest.raises(RladError, match=r"prompts.jsonl has 2 prompts, fewer than the 3"):
        task.evaluation("test", 3)

    task = load_task({**spec, "reward": named(here, "shorter_is_better"), "correct_at": 0.25})
    assert [task.score("x" * n, first).correct for n in (2, 4, 5)] == [True, True, False]
    assert load_task({**spec, "reward": named(here, "explains")}).score("x", first) == Score(
        0.5, True, "x", "half a point"
    )


def test_each_split_of_prompts_is_a_file_of_its_own(here: Path) -> None:
    """A run that is validated on the evaluation prompts is chosen by what it is judged by."""
    files = {
        option: json_lines(here / f"{option}.jsonl", [{"prompt": f"{option} {n}"} for n in range(3)])
        for option in ("prompts", "evaluation_prompts", "validation_prompts")
    }
    spec = {**files, "reward": named(here, "is_right")}
    task = load_task(spec)

    def texts(examples: Sequence[Mapping[str, Any]]) -> list[str]:
        return [example["prompt"][0]["content"] for example in examples]

    assert texts(task.evaluation("test", 2)) == ["evaluation_prompts 0", "evaluation_prompts 1"]
    assert texts(task.evaluation("validation", 2)) == ["validation_prompts 0", "validation_prompts 1"]
    assert len(task.evaluation("validation")) == 3
    with pytest.raises(RladError, match=r"validation_prompts.jsonl has 3 prompts, fewer than the 4"):
        task.evaluation("validation", 4)
    with pytest.raises(RladError, match="an evaluation split is test or validation, not 'train'"):
        task.evaluation("train")

    without = load_task({key: value for key, value in spec.items() if key != "validation_prompts"})
    assert texts(without.evaluation("test", 1)) == ["evaluation_prompts 0"]
    says = "name a file in task.validation_prompts, or set split: test to validate on the evaluation prompts"
    with pytest.raises(RladError, match=says):
        without.evaluation("validation")
    to_validate = load_task({key: value for key, value in spec.items() if key != "evaluation_prompts"})
    assert texts(to_validate.evaluation("validation", 1)) == ["validation_prompts 0"]
    with pytest.raises(RladError, match="nothing to evaluate on"):
        to_validate.evaluation("test")


def test_a_prompt_in_several_files_stays_in_each(here: Path) -> None:
    data = json_lines(here / "prompts.jsonl", PROMPTS)
    named_files = dict.fromkeys(("prompts", "evaluation_prompts", "validation_prompts"), data)
    task = load_task({**named_files, "reward": named(here, "is_right")})
    assert task.train() == task.evaluation("test") == task.evaluation("validation")


@pytest.mark.parametrize(
    ("function", "says"),
    [
        ("breaks", "KeyError: 'answer'"),
        ("says_nothing", "TypeError"),
        ("says_nan", "must return a finite number"),
        ("scores_none", r"must return a finite number, a bool or a Score, not Score\(value=None"),
        ("scores_text", r"must return a finite number, a bool or a Score, not Score\(value='1'"),
    ],
)
def test_reward_functions_that_give_no_reward(here: Path, function: str, says: str) -> None:
    task = load_task({"prompts": json_lines(here / "p.jsonl", PROMPTS), "reward": named(here, function)})
    with pytest.raises(RladError, match=says):
        task.score("yes", {})


def test_scores_that_are_none_or_missing_are_one_error(here: Path) -> None:
    task = load_task(named(here, "Broken"))
    for how, says in [("fewer", "gave 1 scores for 2 responses"), ("none", "by a finite number, not None")]:
        with pytest.raises(RladError, match=says):
            score_all(task, ["1", "2"], [{"how": how}] * 2)


def test_options_of_a_task_of_prompts_that_are_wrong(here: Path) -> None:
    data = json_lines(here / "prompts.jsonl", PROMPTS)
    good = {"prompts": data, "reward": named(here, "is_right")}
    for change, says in [
        ({"prompts": "none.jsonl"}, "task.prompts: there is no file none.jsonl"),
        ({"prompts": 5}, "must be the path"),
        ({"evaluation_prompts": "none.jsonl"}, "task.evaluation_prompts: there is no file"),
        ({"validation_prompts": "none.jsonl"}, "task.validation_prompts: there is no file"),
        ({"validation_prompts": 5}, "task.validation_prompts must be the path"),
        ({"reward": named(here, "nothing")}, "has no nothing"),
        ({"reward": named(here, "NOT_A_TASK")}, "must name a function"),
        ({"reward": 5}, "must name a function"),
        ({"correct_at": "high"}, "correct_at must be a number"),
        ({"colour": "red"}, "there is no option 'colour'"),
    ]:
        with pytest.raises(RladError, match=says):
            load_task({**good, **change})
    with pytest.raises(RladError, match=r"nothing to evaluate on: name a file in task.evaluation_prompts"):
        load_task(good).evaluation()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no prompts"),
        ("\n\n", "holds no prompts"),
        ('{"prompt": "a"}\n\n{"prompt": "b"\n', "line 3: is not JSON"),
        ('["a"]\n', "line 1: must be a JSON object, not list"),
        ("[" * 100_000 + "\n", "line 1: is not JSON"),
        ('{"text": "a"}\n', "line 1: has no 'prompt'; it has text"),
        ('{"prompt": "  "}\n', "line 1: the prompt is empty"),
        ('{"prompt": 3}\n', "must be a text or a list of chat messages"),
        ('{"prompt": []}\n', "must be a text or a list of chat messages"),
        ('{"prompt": ["a"]}\n', "exactly 'role' and 'content'"),
        ('{"prompt": [{"role": "user"}]}\n', "exactly 'role' and 'content'"),
        ('{"prompt": [{"role": "oracle", "content": "a"}]}\n', "a role of system, user, assistant"),
        ('{"prompt": [{"role": "user", "content": 1}]}\n', "and a text"),
        ('{"prompt": [{"role": "assistant", "content": "a"}]}\n', "the last message must be the user's"),
        ('{"prompt": "a", "x": 1}\n{"prompt": "b", "y": 1}\n', r"line 2: its columns differ .*\(x, y\)"),
        ('{"prompt": "a"}\n{"prompt": "b\\ud800"}\n', "line 2: the prompt has a lone surrogate"),
    ],
)
def test_files_of_prompts_that_are_wrong(here: Path, text: str, says: str) -> None:
    (here / "bad.jsonl").write_text(text)
    with pytest.raises(RladError, match=says):
        load_task({"prompts": "bad.jsonl", "reward": named(here, "is_right")}).train()


def test_a_file_that_is_not_text(here: Path) -> None:
    (here / "bad.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RladError, match="cannot read"):
        load_task({"prompts": "bad.jsonl", "reward": named(here, "is_right")}).train()


# --- Knights & Knaves, generated


def mark(example: dict) -> str:
    return fingerprint(parse_statements(example["statements"], len(example["names"])))


def test_knights_and_knaves_from_the_generator() -> None:
    task = load_task({"name": "knights_knaves", "people": [2, 3, 4], "size": 100})
    assert isinstance(task, Task)
    examples = task.train()
    assert len(examples) == 100
    assert [example["difficulty"] for example in examples[:4]] == [2, 3, 4, 2]  # every beginning is even
    assert sum(example["difficulty"] == 2 for example in examples) == 34
    for example in examples:
        answer = "\n".join(
            f"{n} is a {'knight' if k else 'knave'}" for n, k in zip(example["names"], example["solution"], strict=True)
        )
        assert task.score(f"<think>x</think><answer>{answer}</answer>", example).correct
        assert split_of(mark(example)) == "train"
        assert example["prompt"][0]["role"] == "user" and example["names"][0] in example["prompt"][0]["content"]
    assert task.train() == examples
    assert load_task({"name": "knights_knaves", "people": [2, 3, 4], "size": 100, "seed": 1}).train() != examples


def test_evaluation_puzzles_are_held_out_distinct_and_the_same_for_every_seed() -> None:
    task = load_task({"name": "knights_knaves", "seed": 3})
    for split in ("test", "validation"):
        examples = task.evaluation(split, 90)
        marks = [mark(example) for example in examples]
        assert {split_of(m) for m in marks} == {split}
        three_up = [m for m, example in zip(marks, examples, strict=True) if example["difficulty"] > 2]
        assert len(set(three_up)) == len(three_up) == 60
        assert len({example["prompt"][0]["content"] for example in examples}) == 90
        assert load_task("knights_knaves").evaluation(split, 90) == examples
    assert len(task.evaluation()) == 300
    for arguments, says in ((("train", 3), "test or validation"), (("test", 0), "at least 1")):
        with pytest.raises(RladError, match=says):
            task.evaluation(*arguments)


def test_the_prompt_of_logic_rl() -> None:
    example = load_task({"name": "knights_knaves", "prompt": "logic-rl", "size": 1, "people": 3}).train()[0]
    system, user = example["prompt"]
    assert system == {"role": "system", "content": LOGIC_RL_INSTRUCTION}
    assert user["role"] == "user"


def test_the_prompt_of_logic_rl_is_the_one_in_its_data(test_data: Path) -> None:
    import pyarrow.parquet as parquet

    path = str(test_data / "kk" / "logic_rl_3ppl_train.parquet")
    theirs = parquet.read_table(path).slice(0, 1).to_pylist()[0]
    system, user = KnightsKnaves(prompt="logic-rl")._example(Puzzle.from_row(theirs))["prompt"]
    written = f"<|im_start|>system\n{system['content']}<|im_end|>\n<|im_start|>user\n{user['content']}<|im_end|>\n"
    assert theirs["prompt"][0]["content"] == f"{written}<|im_start|>assistant\n<think>"


def test_which_think_tag_the_training_reward_counts() -> None:
    """What the example says of its prompt, else what the task's option says, which is off unless it is set."""
    task = load_task({"name": "knights_knaves", "scorer": "logic-rl", "size": 1, "people": 2})
    example = task.train()[0]
    claims = ", ".join(
        f"{n} is a {'knight' if k else 'knave'}" for n, k in zip(example["names"], example["solution"], strict=True)
    )
    whole = f"<think>x</think><answer>{claims}</answer>"
    bare = {"names": example["names"], "solution": example["solution"]}
    assert task.score(whole, example).value == 3
    assert task.score(whole, bare).value == 3
    assert task.score(whole.removeprefix("<think>"), bare).value == -3
    said = {**bare, "prompt_ends_with_think_tag": True}  # as Logic-RL's prompts do
    assert task.score(whole, said).value == -3
    assert task.score(whole.removeprefix("<think>"), said).value == 3
    opened = load_task(
        {"name": "knights_knaves", "scorer": "logic-rl", "size": 1, "people": 2, "prompt_ends_with_think": True}
    )
    for of_opened in (opened.train()[0], bare):
        assert opened.score(whole.removeprefix("<think>"), of_opened).value == 3
    assert opened.score(whole, {**bare, "prompt_ends_with_think_tag": False}).value == 3
    with pytest.raises(RladError, match="needs names to score"):
        task.score(whole, {"solution": [True]})


@pytest.mark.parametrize(
    ("value", "people"),
    [
        (3, (3,)),
        ([4, 2, 2], (2, 4)),
        ((5,), (5,)),
        ("2-8", (2, 3, 4, 5, 6, 7, 8)),
        ("3", (3,)),
        (" 2, 4 - 6 ", (2, 4, 5, 6)),
    ],
)
def test_numbers_of_people(value: Any, people: tuple[int, ...]) -> None:
    assert parse_people(value) == people


@pytest.mark.parametrize(
    "value",
    ["", "2-", "4-2", "two", "1-3", "2-13", "2;3", 1, 13, [], [2.0], [True], True, 2.5, None, {2: 3}, "2-3-4", "-3"],
)
def test_numbers_of_people_that_are_none(value: Any) -> None:
    with pytest.raises(RladError, match="people must be numbers from 2 to 12, like 3"):
        parse_people(value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"size": 0}, "size must be at least 1"),
        ({"size": 2.5}, "size must be a whole number"),
        ({"seed": "a"}, "seed must be a whole number"),
        ({"scorer": "lenient"}, "scorer must be one of strict, logic-rl, logic-rl-eval"),
        ({"prompt": "fancy"}, "prompt must be one of plain, logic-rl"),
        ({"held_out": "keep"}, "held_out must be one of refuse, drop"),
        ({"prompt_ends_with_think": "yes"}, "must be true or false"),
        ({"people": "2-99"}, "people must be numbers"),
        ({"depth": 9}, "depth must be from"),
        ({"width": 1}, "width from"),
        ({"data": 3}, "task.data must be a file"),
        ({"data": []}, "task.data is an empty list"),
        ({"data": "no/such/file.jsonl"}, "there is no file no/such/file.jsonl"),
        ({"data": "no/file.jsonl"}, "there is no file no/file.jsonl"),
        ({"data": "./owner/name"}, "there is no file"),
        ({"evaluation_data": "."}, "is a folder"),
    ],
)
def test_options_that_are_wrong(options: dict, says: str) -> None:
    with pytest.raises(RladError, match=says):
        load_task({"name": "knights_knaves", **options})


# --- Knights & Knaves, from files


def rows(n: int, count: int, seed: int, split: str = "train") -> list[dict]:
    return [puzzle.row() for puzzle in generate(n, count, seed, split)]


def test_training_on_a_file(tmp_path: Path) -> None:
    written = rows(3, 5, 1) + rows(4, 5, 2)
    path = json_lines(tmp_path / "train.jsonl", written)
    everything = load_task({"name": "knights_knaves", "data": path}).train()
    assert [example["prompt"][0]["content"] for example in everything] == [row["quiz"] for row in written]
    fours = load_task({"name": "knights_knaves", "data": [path], "people": 4}).train()
    assert fours == everything[5:]
    with pytest.raises(RladError, match="has no puzzle of 2 or 5 people, only of 3, 4"):
        load_task({"name": "knights_knaves", "data": path, "people": "2-5"}).train()


def test_a_parquet_file_is_read_like_json_lines(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    written = rows(3, 4, 1)
    parquet.write_table(
        pa.Table.from_pylist([{**row, "prompt": "other columns do not matter"} for row in written]),
        tmp_path / "a.parquet",
    )
    lines = json_lines(tmp_path / "a.jsonl", written)
    assert [p for _, p in read_puzzles(str(tmp_path / "a.parquet"))] == [p for _, p in read_puzzles(lines)]
    written[2]["solution"] = [not knight for knight in written[2]["solution"]]
    parquet.write_table(pa.Table.from_pylist(written), tmp_path / "b.parquet")
    with pytest.raises(RladError, match=r"b.parquet, row 3: solution does not solve"):
        read_puzzles(str(tmp_path / "b.parquet"))
    (tmp_path / "c.parquet").write_text("not parquet")
    with pytest.raises(RladError, match="cannot read"):
        read_puzzles(str(tmp_path / "c.parquet"))
    (tmp_path / "c.csv").write_text("a,b")
    with pytest.raises(RladError, match="must end in"):
        read_puzzles(str(tmp_path / "c.csv"))


GOOD = {
    "quiz": "Ann says, 'Bob is a knave'. Bob says, 'Ann is a knight and Bob is a knight'.",
    "names": ["Ann", "Bob"],
    "statements": "(('lying', 1), ('and', ('telling-truth', 0), ('telling-truth', 1)))",
    "solution": [True, False],
}


def test_the_least_row_there_is() -> None:
    assert checked_puzzle(GOOD, "here").solution == (True, False)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"quiz": None}, "quiz must be a string"),
        ({"names": "AB"}, "names must be a list of strings"),
        ({"names": ["Ann", 2]}, "names must be a list of strings"),
        ({"names": None}, "names must be a list of strings"),
        ({"names": ["Ann", " "]}, "none empty or with space around it"),
        ({"names": [" Ann", "Bob"]}, "none empty or with space around it"),
        ({"names": ["Ann", "Ann"]}, "differ"),
        ({"names": ["Ann", "ann"]}, "upper and lower case"),
        ({"names": ["Ann"]}, "2 to 12 people, not 1"),
        ({"names": [f"N{i}" for i in range(40)]}, "2 to 12 people, not 40"),
        ({"names": ["Ann", "Bob", "Carl"]}, "3 names but 2 entries"),
        ({"solution": [1, 0]}, "solution must be a list of true and false"),
        ({"solution": ["true", "false"]}, "solution must be a list of true and false"),
        ({"solution": [False, True]}, "solution does not solve the puzzle"),
        ({"statements": "(('lying', 1), ('lying', 0))"}, "the puzzle has 2 solutions"),
        ({"statements": "(('lying', 0), ('lying', 0))"}, "the puzzle has 0 solutions"),
        ({"statements": "(('lying', 1),)"}, "one statement for each"),
        ({"statements": "open('x')"}, "not the repr of a tuple"),
        ({"index": "first"}, "index must be a whole number"),
        ({"solution_text_format": "(1) Ann is a knave\n(2) Bob is a knight"}, "contradicts"),
        ({"solution_text_format": 3}, "contradicts"),
    ],
)
def test_rows_that_are_wrong_are_named(tmp_path: Path, change: dict, says: str) -> None:
    path = json_lines(tmp_path / "rows.jsonl", [GOOD, {**GOOD, **change}])
    with pytest.raises(RladError, match=f"rows.jsonl, line 2: .*{says}"):
        read_puzzles(path)


@pytest.mark.parametrize("field", GOOD)
def test_rows_that_lack_a_field_are_named(tmp_path: Path, field: str) -> None:
    lacking = {key: value for key, value in GOOD.items() if key != field}
    path = json_lines(tmp_path / "rows.jsonl", [GOOD, GOOD, lacking])
    with pytest.raises(RladError, match=f"line 3: .*{field}"):
        read_puzzles(path)


def test_an_empty_file(tmp_path: Path) -> None:
    with pytest.raises(RladError, match="holds no puzzles"):
        read_puzzles(json_lines(tmp_path / "rows.jsonl", []))


@pytest.fixture
def official(monkeypatch: pytest.MonkeyPatch) -> dict:
    """A row, which is made an official test puzzle: under other names, people and operands in another order."""
    puzzle = generate(3, 1, 77)[0]
    from rlad.tasks.knights_knaves import dataset

    monkeypatch.setattr(dataset, "official_test_fingerprints", lambda: frozenset({fingerprint(puzzle.statements)}))
    place = [2, 0, 1]

    def moved(tree: tuple) -> tuple:
        if tree[0] in ("telling-truth", "lying"):
            return (tree[0], place[tree[1]])
        operands = [moved(operand) for operand in tree[1:]]
        return (tree[0], *(operands if tree[0] == "->" else operands[::-1]))

    statements: list = [()] * 3
    solution = [False] * 3
    for i in range(3):
        statements[place[i]], solution[place[i]] = moved(puzzle.statements[i]), puzzle.solution[i]
    return {
        "quiz": "a puzzle",
        "names": ["Xi", "Yu", "Zo"],
        "statements": repr(tuple(statements)),
        "solution": solution,
    }


def test_official_test_puzzles_are_refused_in_training_files(tmp_path: Path, official: dict) -> None:
    others = rows(3, 4, 1)
    path = json_lines(tmp_path / "train.jsonl", [*others[:2], official, *others[2:], official])
    with pytest.raises(RladError, match=r"train.jsonl, line 3: an official test puzzle .*2 such rows .*held_out=drop"):
        load_task({"name": "knights_knaves", "data": path}).train()
    kept = load_task({"name": "knights_knaves", "data": path, "held_out": "drop"}).train()
    assert [example["prompt"][0]["content"] for example in kept] == [row["quiz"] for row in others]
    only = json_lines(tmp_path / "only.jsonl", [official])
    with pytest.raises(RladError, match="all of them are held out"):
        load_task({"name": "knights_knaves", "data": only, "held_out": "drop"}).train()
    assert len(load_task({"name": "knights_knaves", "evaluation_data": only}).evaluation()) == 1  # where it belongs


def test_shipped_fingerprints_refuse_the_official_tests(test_data: Path) -> None:
    for n in (2, 3, 4, 6, 8):
        path = str(test_data / "kk" / f"test_people{n}.jsonl")
        with pytest.raises(RladError, match=r"line 1: an official test puzzle .* the 100 such rows"):
            load_task({"name": "knights_knaves", "data": path}).train()
        assert len(load_task({"name": "knights_knaves", "evaluation_data": path}).evaluation()) == 100
    parquet = str(test_data / "kk" / "logic_rl_3ppl_train.parquet")
    with pytest.raises(RladError, match=r"row 248: an official test puzzle .* the 10 such rows"):
        load_task({"name": "knights_knaves", "data": parquet}).train()
    assert len(load_task({"name": "knights_knaves", "data": parquet, "held_out": "drop"}).train()) == 890


def test_evaluation_files_are_held_out_of_training_files_and_of_the_generator(tmp_path: Path) -> None:
    both = rows(3, 3, 5)
    train = json_lines(tmp_path / "train.jsonl", rows(3, 3, 6) + both[:1])
    test = json_lines(tmp_path / "test.jsonl", both)
    with pytest.raises(
        RladError, match=r"train.jsonl, line 4: a puzzle of evaluation_data .*that row with task.held_out=drop"
    ):
        load_task({"name": "knights_knaves", "data": train, "evaluation_data": test}).train()
    kept = load_task({"name": "knights_knaves", "data": train, "evaluation_data": test, "held_out": "drop"}).train()
    assert len(kept) == 3

    pairs = json_lines(
        tmp_path / "pairs.jsonl", rows(2, 100, 5)
    )  # most of the puzzles of 2 people in the training split
    held_out = {fingerprint(p.statements) for _, p in read_puzzles(pairs)}
    options = {"name": "knights_knaves", "people": 2, "size": 300, "evaluation_data": pairs}
    assert not held_out & {mark(example) for example in load_task(options).train()}


def test_generated_evaluation_puzzles_are_not_in_the_training_file(tmp_path: Path) -> None:
    """A file of one's own can hold puzzles of the generator's test split; they are then not used to evaluate."""
    written = rows(2, 60, 1, "test")
    path = json_lines(tmp_path / "train.jsonl", written)
    trained = {fingerprint(parse_statements(row["statements"], 2)) for row in written}
    examples = load_task({"name": "knights_knaves", "people": 2, "data": path}).evaluation("test", 50)
    assert not trained & {mark(example) for example in examples}
    every = json_lines(tmp_path / "all.jsonl", rows(2, 2_000, 1, "test"))
    with pytest.raises(RladError, match="nearly every test puzzle of 2 people is held out or trained on"):
        load_task({"name": "knights_knaves", "people": 2, "data": every}).evaluation("test", 5)


def test_validation_is_of_the_generator_beside_evaluation_files(tmp_path: Path) -> None:
    """A run that is validated on evaluation_data is chosen by what it is judged by."""
    path = json_lines(tmp_path / "test.jsonl", rows(3, 6, 1, "test"))
    task = load_task({"name": "knights_knaves", "people": 3, "evaluation_data": path})
    alone = load_task({"name": "knights_knaves", "people": 3})
    assert task.evaluation("validation", 20) == alone.evaluation("validation", 20)
    assert len(task.evaluation("validation")) == 100
    assert len(task.evaluation("test")) == 6
    with pytest.raises(RladError, match="has 6 puzzles, fewer than the 7"):
        task.evaluation("test", 7)


def test_validation_puzzles_are_in_no_file_up_to_names_and_order(tmp_path: Path) -> None:
    """Such files can hold puzzles of the generator's validation split; of 2 people there are 26, all drawn here."""
    found = {fingerprint(puzzle.statements): puzzle.row() for puzzle in generate(2, 500, 1, "validation")}
    marks = sorted(found)
    evaluated, trained, left = set(marks[:9]), set(marks[9:18]), set(marks[18:])
    evaluation_data = json_lines(tmp_path / "evaluated.jsonl", [found[each] for each in evaluated])
    data = json_lines(tmp_path / "trained.jsonl", [found[each] for each in trained])

    def validated(count: int = 200, **files: str) -> set[str]:
        task = load_task({"name": "knights_knaves", "people": 2, **files})
        return {mark(example) for example in task.evaluation("validation", count)}

    assert len(left) == 8 and validated() == set(marks)
    assert validated(evaluation_data=evaluation_data) == trained | left
    assert validated(evaluation_data=evaluation_data, data=data) == left
    every = json_lines(tmp_path / "every.jsonl", list(found.values()))
    with pytest.raises(RladError, match="nearly every validation puzzle of 2 people is held out or trained on"):
        validated(5, evaluation_data=every)


def test_evaluation_on_files_is_even_over_people(tmp_path: Path) -> None:
    files = [json_lines(tmp_path / f"{n}.jsonl", rows(n, 6, 1, "test")) for n in (2, 3)]
    task = load_task({"name": "knights_knaves", "evaluation_data": files})
    assert [example["difficulty"] for example in task.evaluation("test", 5)] == [2, 3, 2, 3, 2]
    assert len(task.evaluation()) == 12
    with pytest.raises(RladError, match="has 12 puzzles, fewer than the 13"):
        task.evaluation("test", 13)


def test_a_dataset_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the hub's client replaced: which files are asked for, and which are read."""
    import huggingface_hub

    asked = []

    def snapshot_download(repository: str, *, repo_type: str, allow_patterns: object) -> str:
        asked.append((repository, repo_type, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    for folder, count in (("train", 3), ("test", 2)):
        (tmp_path / folder).mkdir()
        for n in (2, 3):
            json_lines(tmp_path / folder / f"people{n}.jsonl", rows(n, count, n))
    assert len(read_puzzles("someone/puzzles", "train")) == 6
    assert len(read_puzzles("someone/puzzles", "test")) == 4
    assert len(read_puzzles("someone/puzzles:test/people3*", "train")) == 2
    assert asked[0] == ("someone/puzzles", "dataset", ["*.jsonl", "*.json", "*.parquet"])
    assert asked[2] == ("someone/puzzles", "dataset", "test/people3*")
    with pytest.raises(RladError, match=r"no .jsonl or .parquet file that matches"):
        read_puzzles("someone/puzzles:dev/*")


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def snapshot_download(*_: object, **__: object) -> str:
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(RladError, match="cannot get the dataset someone/puzzles from the hub: no network"):
        load_task({"name": "knights_knaves", "data": "someone/puzzles"}).train()


def test_the_list_of_fingerprints_can_be_made_again(tmp_path: Path) -> None:
    path = json_lines(tmp_path / "a.jsonl", rows(3, 4, 1) + rows(3, 4, 1))
    made = subprocess.run(
        [sys.executable, "-m", "rlad.tasks.knights_knaves.fingerprints", path],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    assert made == sorted({fingerprint(p.statements) for _, p in read_puzzles(path)})
    failed = subprocess.run(
        [sys.executable, "-m", "rlad.tasks.knights_knaves.fingerprints", str(tmp_path / "none.jsonl")],
        capture_output=True,
        text=True,
    )
    assert failed.returncode == 1 and failed.stderr.startswith("error: ") and failed.stderr.count("\n") == 1


def test_splits_are_three() -> None:
    assert SPLITS == ("train", "validation", "test")


def test_scores_of_several_responses_come_from_the_task_s_own_way_to_do_them_together() -> None:
    class Alone:
        def score(self, response: str, example: Mapping[str, Any]) -> Score:
            return Score(len(response), response == example["gold"], response, "")

    class Together(Alone):
        def score_many(self, responses: Sequence[str], examples: Sequence[Mapping[str, Any]]) -> list[Score]:
            return [Score(9, False, response, "together") for response in responses]

    examples = [{"gold": "a"}, {"gold": "b"}]
    assert [(s.value, s.correct) for s in score_all(Alone(), ["a", "xx"], examples)] == [(1, True), (2, False)]
    assert [s.explanation for s in score_all(Together(), ["a", "xx"], examples)] == ["together"] * 2
    with pytest.raises(ValueError):
        score_all(Alone(), ["a"], examples)


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_score_that_is_no_finite_number_stops_what_would_train_on_it(value: float) -> None:
    class Odd:
        name = "odd"

        def score(self, response: str, example: dict[str, Any]) -> Score:
            return Score(value if response == "b" else 1.0, False, None, "")

    with pytest.raises(RladError, match=r"the task odd must score a response by a finite number, not (nan|-inf)"):
        score_all(Odd(), ["a", "b"], [{}, {}])  # type: ignore[arg-type]
