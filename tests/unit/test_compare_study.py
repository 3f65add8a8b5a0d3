"""A study file: what cells it makes, what makes two cells the same run, and what is refused before anything runs."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlad.compare.cells import Results, read_cell, seconds_of_steps, write_cell
from rlad.compare.identity import differences, evaluated_by
from rlad.compare.run import chosen_row, missing, selected, waiting
from rlad.compare.study import Cell, Study, shown
from rlad.errors import RladError
from rlad.files import whole_file

RECIPE = {
    "model": "embedded:student", "teacher": "embedded:teacher", "task": {"name": "knights_knaves", "people": [2]},
    "method": "rlad", "evaluate": {"puzzles": 20}, "output": "somewhere",
    "trainer": {"max_steps": 3, "per_device_train_batch_size": 16, "gradient_accumulation_steps": 2, "use_cpu": True,
                "bf16": False},
}  # fmt: skip
CELLS: list[dict[str, Any]] = [
    {"name": "grpo", "set": {"method": "grpo"}},
    {"name": "rlad", "grid": {"method.alpha": [0.3, 0.5]}},
    {"name": "kdrl", "set": {"method": "kdrl"}, "sweep": {"method.coefficient": [0.01, 0.1]}},
]


def study(folder: Path, **changes: Any) -> Study:
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    data = {"recipe": str(folder / "recipe.yaml"), "seeds": [1, 2], "cells": CELLS} | changes
    (folder / "mine.yaml").write_text(yaml.safe_dump({k: v for k, v in data.items() if v is not None}))
    return Study.load(folder / "mine.yaml")


def finish(results: Results, cell: Cell, after: float = 0.5, **more: Any) -> Path:
    """A finished cell as a file, made by hand."""
    gain = [{"difficulty": "2", "problems": 20, "before": 0.3, "after": after}]
    data = {"version": 1, "cell": cell.label, "kind": cell.kind, "budget_seconds": cell.seconds, "seed": cell.seed}
    write_cell(results.path(cell), {**data, "recipe": cell.recipe, "gain": gain, "curve": {}, **more})
    return results.path(cell)


def cells_of(made: Study, label: str) -> list[Cell]:
    return made.cells(next(row for row in made.rows if row.label == label))


def test_rows_seeds_and_trials(tmp_path: Path) -> None:
    made = study(tmp_path, set={"trainer.learning_rate": 1e-4})
    assert made.name == "mine" and made.baseline == "grpo"
    assert [row.label for row in made.rows] == ["grpo", "rlad alpha=0.3", "rlad alpha=0.5", "kdrl"]
    grpo, rlad = cells_of(made, "grpo"), cells_of(made, "rlad alpha=0.3")
    assert [cell.seed for cell in grpo] == [1, 2] and [cell.slug for cell in grpo] == ["grpo-seed1", "grpo-seed2"]
    assert grpo[1].recipe["seed"] == 2 and grpo[0].recipe["method"] == {"name": "grpo"}
    assert rlad[0].recipe["method"] == {"name": "rlad", "alpha": 0.3}
    assert all(cell.recipe["trainer"]["learning_rate"] == 1e-4 for cell in (*grpo, *rlad))
    trials = made.trials(made.rows[3])
    assert [trial.recipe["method"]["coefficient"] for trial in trials] == [0.01, 0.1]
    assert all(trial.seed == 0 and trial.recipe["evaluate"]["split"] == "validation" for trial in trials)
    assert [trial.label for trial in trials] == ["kdrl coefficient=0.01", "kdrl coefficient=0.1"]


@pytest.mark.parametrize(
    ("budget", "steps"),
    # An update is 16 x 2 rollouts: 320 of them pay for 10.
    [(None, 3), ({"steps": 7}, 7), ({"rollouts": 320}, 10), ({"seconds": 60.0}, 3)],
)
def test_the_budget_is_the_same_for_all(budget: Any, steps: int, tmp_path: Path) -> None:
    made = study(tmp_path, budget=budget)
    cells = [*cells_of(made, "grpo"), *made.trials(made.rows[3])]
    assert {cell.recipe["trainer"]["max_steps"] for cell in cells} == {steps}
    assert {cell.seconds for cell in cells} == {60.0 if budget and "seconds" in budget else None}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seeds": []}, "seeds"),
        ({"seeds": [1, 1]}, "a seed is there twice"),
        ({"cells": []}, "cells"),
        ({"sede": 3}, "sede: unknown key"),
        ({"baseline": "nobody"}, "there is no cell 'nobody'; cells: grpo, rlad alpha=0.3"),
        ({"budget": {"steps": 3, "seconds": 5.0}}, "give one of steps, rollouts and seconds"),
        ({"budget": {"rollouts": 33}}, "33 is not a multiple of the 32 of an update"),
        ({"cells": [*CELLS, CELLS[0]]}, "two cells are called 'grpo'"),
        ({"cells": [{"name": "x", "set": {"method.alhpa": 1.0}}]}, r"x: method.alhpa: unknown key"),
        ({"cells": [*CELLS, {"name": "x", "sweep": {"method.alpha": [0.1, 0.2, 0.3]}}]}, "a sweep of the same size"),
        ({"cells": [{"name": "x", "sweep": {"method.alpha": [0.1, 0.2, 0.3, 0.4, 0.5]}}]}, "at most 4"),
        ({"sweep": {"seed": 1}}, "1 is one of the seeds"),
        ({"sweep": {"set": {}}}, "evaluate.split to validation"),
        ({"recipe": "nowhere.yaml"}, "there is no recipe 'nowhere.yaml'"),
        ({"cells": [{"name": "x", "set": {"stages": [{"method": "grpo"}]}}]}, "leave the stages out"),
        ({"cells": [{"name": "x", "grid": {"method.alpha": []}}]}, "cells.0.grid.method.alpha: .*at least 1"),
        ({"cells": [{"name": "x", "sweep": {"method.alpha": []}}]}, "cells.0.sweep.method.alpha: .*at least 1"),
        ({"set": {"seed": 5}}, "seed: a study sets it itself: give seeds in `seeds`"),
        ({"cells": [{"name": "x", "set": {"output": "here"}}]}, "output: a study sets it itself"),
        ({"grid": {"seed": [1, 2]}}, "seed: a study sets it itself"),
        (
            {"set": {"method.teacher_clip": 2.0}, "cells": [{"name": "x", "set": {"method": {"name": "rlad"}}}]},
            "x: method.teacher_clip: is lost, because method takes the place of the whole section",
        ),
        ({"cells": [{"name": "x y"}, {"name": "x-Y"}]}, "'x y' and 'x-Y' would be one file"),
        ({"cells": [{"name": "é"}]}, "cannot be called 'é': use letters"),
        ({"cells": [{"name": "a|b"}]}, r"cannot be called 'a\|b'"),
        ({"cells": [{"name": "a" * 200}]}, "150 at most"),
    ],
)
def test_mistakes_are_named(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(RladError, match=words):
        study(tmp_path, **changes)


def test_a_study_may_not_take_the_place_of_the_trials(tmp_path: Path) -> None:
    study(tmp_path)
    (tmp_path / "mine.yaml").rename(tmp_path / "sweeps.yaml")
    with pytest.raises(RladError, match="the folder sweeps is for the trials"):
        Study.load(tmp_path / "sweeps.yaml")


def test_a_budget_in_seconds_is_none_of_an_evaluation(tmp_path: Path) -> None:
    """So that a study with one and a study without share the teacher's."""
    teacher = {"name": "teacher", "kind": "evaluate", "once": True, "set": {"model": "embedded:teacher"}}
    cells = [
        cells_of(study(tmp_path, cells=[*CELLS, teacher], budget=b), "teacher")[0] for b in (None, {"seconds": 9.0})
    ]
    assert cells[0].digest == cells[1].digest


def test_a_file_that_is_no_study_is_named(tmp_path: Path) -> None:
    for content in ("- 1", "a: [", None):
        path = tmp_path / "bad.yaml"
        if content is not None:
            path.write_text(content)
        with pytest.raises(RladError, match=r"bad\.yaml"):
            Study.load(path if content is not None else tmp_path / "missing" / "bad.yaml")


def test_numbers_are_read_as_recipes_have_them(tmp_path: Path) -> None:
    study(tmp_path)
    path = tmp_path / "mine.yaml"
    path.write_text(path.read_text() + "set: {trainer.learning_rate: 1e-4}\n")
    assert Study.load(path).rows[0].settings["trainer.learning_rate"] == 1e-4


def test_an_old_cell_of_sft_is_known_by_its_recipe(tmp_path: Path) -> None:
    sft = {key: value for key, value in RECIPE.items() if key != "method"} | {"sft": {"traces": "t"}, "seed": 1}
    (tmp_path / "sft.yaml").write_text(yaml.safe_dump(sft))
    made = study(tmp_path, cells=[{"name": "sft", "kind": "sft", "recipe": str(tmp_path / "sft.yaml")}])
    cell = made.cells(made.rows[0])[0]
    old = tmp_path / "results" / "older" / "one.json"
    old.parent.mkdir(parents=True)
    old.write_text(json.dumps({"recipe": {**cell.recipe, "output": "x"}, "gain": []}))
    found = Results(tmp_path / "results", "mine").find(cell)
    assert found is not None and found.path == old


def test_an_identity_is_of_values_and_not_of_how_they_are_written(tmp_path: Path) -> None:
    made = study(tmp_path)
    rlad = cells_of(made, "rlad alpha=0.5")[0]
    plain = Cell("other", "train", 1, {}, {**rlad.recipe, "method": {"name": "rlad", "clip_low": 0.2}})
    assert plain.digest == rlad.digest and differences(plain.identity, rlad.identity) == []
    for changed in (
        Cell("other", "train", 1, {}, {**rlad.recipe, "seed": 2}),
        Cell("other", "train", 1, {}, {**rlad.recipe, "method": {"name": "rlad", "alpha": 0.4}}),
        Cell("other", "train", 1, {}, rlad.recipe, seconds=5.0),
    ):
        assert changed.digest != rlad.digest and len(differences(changed.identity, rlad.identity)) == 1


def test_an_evaluated_model_does_not_care_for_methods(tmp_path: Path) -> None:
    teacher = {"name": "teacher", "kind": "evaluate", "once": True, "set": {"model": "embedded:teacher"}}
    one = study(tmp_path, cells=[*CELLS, teacher])
    (first,) = cells_of(one, "teacher")
    assert first.recipe["model"]["path"] == "embedded:teacher" and first.seed == 1
    other = Cell("x", "evaluate", 1, {}, {**first.recipe, "method": {"name": "grpo"}})
    assert other.digest == first.digest


def test_an_evaluation_depends_on_the_length_of_rollouts_where_it_has_none_of_its_own(tmp_path: Path) -> None:
    made = cells_of(study(tmp_path), "grpo")[0].recipe

    def asked(rollouts: int, own: int | None) -> Any:
        trainer = {**made["trainer"], "max_completion_length": rollouts}
        return evaluated_by({**made, "trainer": trainer, "evaluate": {**made["evaluate"], "max_new_tokens": own}})

    assert asked(100, 700) == asked(200, 700) != asked(200, 600)
    assert asked(100, None) != asked(200, None)


def test_responses_before_sft_are_as_long_as_its_section_says(tmp_path: Path) -> None:
    made = cells_of(study(tmp_path), "grpo")[0].recipe
    open_end = {**made, "evaluate": {**made["evaluate"], "max_new_tokens": None}}

    def asked(**sft: Any) -> Any:
        return evaluated_by({**{key: value for key, value in open_end.items() if key != "method"}, "sft": sft})

    def trained(length: int) -> Any:
        return evaluated_by({**open_end, "trainer": {**made["trainer"], "max_completion_length": length}})

    assert asked(max_new_tokens=704) == trained(704) != asked(max_new_tokens=256) == trained(256)
    assert asked() == trained(512)  # the default of both
    assert asked(chat_template_kwargs={"enable_thinking": False}) != asked()


def test_what_is_missing_and_what_the_sweep_chooses(tmp_path: Path) -> None:
    made, results = study(tmp_path), Results(tmp_path / "results", "mine")
    trials, cells = missing(made, results)
    assert [cell.label for cell in trials] == ["kdrl coefficient=0.01", "kdrl coefficient=0.1"]
    # Seed by seed, so that all methods grow together.
    assert [(c.label[:4], c.seed) for c in cells] == [("grpo", 1), ("rlad", 1), ("rlad", 1), ("grpo", 2), ("rlad", 2), ("rlad", 2)]  # fmt: skip  # noqa: E501
    assert [cell.label for cell in missing(made, results, only="grpo")[1]] == ["grpo", "grpo"]
    assert [(c.label, c.seed) for c in missing(made, results, only="grpo", seeds=[2])[1]] == [("grpo", 2)]
    assert len(missing(made, results, seeds=[2])[0]) == 2  # the sweep has a seed of its own
    with pytest.raises(RladError, match="has no seed 7: its seeds are 1, 2"):
        missing(made, results, seeds=[1, 7])
    finish(results, trials[0], after=0.4)
    assert chosen_row(made, made.rows[3], results) is None
    finish(results, trials[1], after=0.6)
    row = chosen_row(made, made.rows[3], results)
    assert row is not None and row.chosen == {"method.coefficient": 0.1}
    trials, cells = missing(made, results)
    assert not trials and [c.recipe["method"].get("coefficient") for c in cells if c.label == "kdrl"] == [0.1, 0.1]
    assert [c.recipe["evaluate"]["split"] for c in cells] == ["test"] * 8
    finish(results, cells[0])
    assert cells[0] not in missing(made, results)[1]


def test_of_equal_trials_the_first_is_chosen(tmp_path: Path) -> None:
    made, results = study(tmp_path), Results(tmp_path / "results", "mine")
    for trial in missing(made, results)[0]:
        finish(results, trial, after=0.4)
    row = chosen_row(made, made.rows[3], results)
    assert row is not None and row.chosen == {"method.coefficient": 0.01}


def test_a_changed_recipe_is_refused_by_name(tmp_path: Path) -> None:
    made, results = study(tmp_path), Results(tmp_path / "results", "mine")
    path = finish(results, cells_of(made, "grpo")[0])
    changed = study(tmp_path, set={"trainer.learning_rate": 1e-4, "evaluate.puzzles": 30})
    with pytest.raises(RladError) as error:
        missing(changed, results)
    for words in (
        str(path),
        "evaluate.puzzles is 30 here and 20 there",
        "trainer.learning_rate is 0.0001 here and null",
    ):
        assert words in str(error.value)


def test_a_cell_of_another_study_is_taken_over_and_old_files_are_read(tmp_path: Path) -> None:
    made = study(tmp_path)
    cell = cells_of(made, "rlad alpha=0.5")[0]
    old = tmp_path / "results" / "older" / "one.json"
    old.parent.mkdir(parents=True)
    # As before `rlad compare`: no version, rows for the curve, a recipe without later keys, an output folder.
    recipe = {**cell.recipe, "output": "runs/old", "method": {"name": "rlad", "alpha": 0.5}}
    del recipe["stages"]
    gain = [{"difficulty": "2", "problems": 20, "before": 0.3, "after": 0.7}]
    old.write_text(
        json.dumps({"recipe": recipe, "gain": gain, "curve": [{"step": 1, "accuracy": 0.5}], "commit": "abc"})
    )
    (old.parent / "unreadable.json").write_text("{")
    results = Results(tmp_path / "results", "mine")
    found = results.find(cell)
    assert found is not None and found.path == old and found.accuracy("after") == 0.7
    assert not results.path(cell).exists()  # looking writes nothing
    taken = results.adopt(cell)
    assert taken is not None and taken.path == results.path(cell) and taken.data["from"] == "older/one.json"
    assert taken.curve == [{"step": 1, "accuracy": 0.5}] and results.adopt(cell) is None
    other_seed = cells_of(made, "rlad alpha=0.5")[1]
    assert results.find(other_seed) is None


def test_a_trial_that_an_earlier_version_named_otherwise_is_not_copied(tmp_path: Path) -> None:
    made = study(tmp_path)
    trial = replace(cells_of(made, "rlad alpha=0.5")[0], trial=True)
    results = Results(tmp_path / "results", "mine")
    old = results.path(trial).with_name("rlad-alpha-0.5-seed1-00000000.json")
    old.parent.mkdir(parents=True)
    old.write_text(json.dumps({"recipe": trial.recipe, "curve": [{"step": 1, "accuracy": 0.5}]}))
    found = results.find(trial)
    assert found is not None and found.path == old
    assert results.adopt(trial) is None and list(old.parent.iterdir()) == [old]


def test_a_file_that_is_no_cell_is_named(tmp_path: Path) -> None:
    made, results = study(tmp_path), Results(tmp_path / "results", "mine")
    cell = cells_of(made, "grpo")[0]
    right = {"digest": "x", "samples": 1, "before": [0, 1], "after": [1, 1]}
    broken: list[dict[str, Any]] = [
        {"curve": [{"accuracy": 0.5}]}, {"curve": {"step": [1, 2], "accuracy": [0.5]}}, {"gain": [{"difficulty": "2"}]},
        {"problems": {**right, "after": [1, 2]}}, {"problems": {**right, "after": [1]}}, {"problems": {"samples": 1}},
        {"recipe": "seed"}, {"recipe": ["seed"]}, {"recipe": {}}, {"recipe": {"seed": "x"}},
        {"gain": [{"difficulty": "2", "after": 0.5, "before": "x"}]}, {"gain": [{"difficulty": 2, "after": 0.5}]},
        {"curve": {"step": [1], "accuracy": ["0.5"]}}, {"curve": {"step": [None]}}, {"commit": 3}, {"seconds": "x"},
        {"problems": {"digest": "x", "samples": 1}}, {"problems": {"digest": "x", "samples": 1, "before": [1]}},
        {"problems": {**right, "before": [], "after": []}}, {"problems": {**right, "after": [0.5, 1]}},
    ]  # fmt: skip
    words = [json.dumps({"recipe": {"seed": 1}} | each) for each in broken]
    for content in ("{", "[]", "{}", "[" * 100_000, '{"recipe": {"seed": 1}, "version": 99}', *words):
        results.path(cell).parent.mkdir(parents=True, exist_ok=True)
        results.path(cell).write_text(content)
        with pytest.raises(RladError, match="is not a finished cell"):
            results.find(cell)


def test_a_cell_of_options_that_are_gone_is_named_and_another_study_passes_it_over(tmp_path: Path) -> None:
    made, results = study(tmp_path), Results(tmp_path / "results", "mine")
    cell = cells_of(made, "grpo")[0]
    path = finish(results, cell)
    data = json.loads(path.read_text())
    data["recipe"]["gone"] = 1
    path.write_text(json.dumps(data))
    with pytest.raises(
        RladError, match=rf"{path.name} has a recipe that this version does not read: gone: unknown key"
    ):
        results.find(cell)
    assert Results(tmp_path / "results", "other").find(cell) is None


def test_a_file_that_python_cannot_read_is_in_no_other_study_s_way(tmp_path: Path) -> None:
    made, results = study(tmp_path), Results(tmp_path / "results", "mine")
    for name, content in (("whole", "[" * 100_000), ("recipe", '{"recipe": {"seed": 1, "model": ' + "[" * 900)):
        path = tmp_path / "results" / "other" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "]" * content.count("[") + "}" * content.count("{"))
    assert results.find(cells_of(made, "grpo")[0]) is None


def test_a_name_that_is_part_of_another_selects_its_row_alone(tmp_path: Path) -> None:
    kdrl = {"name": "kdrl", "set": {"method": "kdrl"}}
    cells = [kdrl, {**kdrl, "name": "kdrl as its paper has it", "sweep": CELLS[2]["sweep"]}]
    made = study(tmp_path, cells=cells)
    assert [row.label for row in selected(made, "kdrl")] == ["kdrl"]
    assert [row.label for row in selected(made, "kd")] == ["kdrl", "kdrl as its paper has it"]
    results = Results(tmp_path / "results", "mine")
    trials, found = missing(made, results, only="kdrl")
    assert not trials and [cell.seed for cell in found] == [1, 2]
    assert (
        waiting(made, results) == 2 and waiting(made, results, seeds=[2]) == 1 and waiting(made, results, "kdrl") == 0
    )
    (trial, _), row = made.trials(made.rows[1]), made.rows[1].label
    assert trial.row == row and selected(made, trial.row) == [made.rows[1]]


def test_a_trial_s_name_is_one_that_a_file_can_have(tmp_path: Path) -> None:
    chat = {"trainer.chat_template_kwargs": [{"system": "x" * 300}, {"system": "y" * 300}]}
    made = study(tmp_path, cells=[{"name": "long", "sweep": chat}])
    names = [trial.slug for trial in made.trials(made.rows[0])]
    assert len(set(names)) == 2
    for name in names:
        with whole_file(tmp_path / f"{name}.job.json"):
            pass


def test_a_grid_of_the_study_is_of_all_cells_with_its_recipe(tmp_path: Path) -> None:
    teacher = {"name": "teacher", "kind": "evaluate", "once": True, "set": {"model": "embedded:teacher"}}
    other = {"name": "other", "recipe": str(tmp_path / "recipe.yaml")}
    made = study(tmp_path, cells=[teacher, other], grid={"evaluate.puzzles": [10, 20]})
    assert [row.label for row in made.rows] == ["teacher puzzles=10", "teacher puzzles=20", "other"]


def test_seconds_of_training_are_those_of_the_steps() -> None:
    # A row for five steps has their mean: 5 x 10 s, then 5 x 4 s.
    rows = [{"step": 5, "step_time": 10.0, "time": 100.0}, {"step": 10, "step_time": 4.0, "time": 900.0}]
    assert seconds_of_steps(rows) == [50.0, 70.0]
    # Supervised: the time between rows, and nothing is known of the first.
    assert seconds_of_steps([{"step": 1, "time": 10.0}, {"step": 2, "time": 13.0}]) == [0.0, 3.0]


def test_written_cells_are_read_back(tmp_path: Path) -> None:
    made = study(tmp_path)
    cell = cells_of(made, "grpo")[0]
    curve = {"step": [1, 2], "accuracy": [0.5, None]}
    path = finish(Results(tmp_path / "results", "mine"), cell, curve=curve, seconds=1.5)
    found = read_cell(path)
    assert found.curve == [{"step": 1, "accuracy": 0.5}, {"step": 2, "accuracy": None}]
    assert found.identity == cell.identity and found.seed == 1
    assert len(path.read_text().splitlines()) < 40  # one line a key


ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("path", sorted((ROOT / "recipes" / "studies").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_studies_of_this_repository_can_run(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    made = Study.load(path)
    cells = [cell for row in made.rows for cell in (made.cells(row) if row.chosen is not None else made.trials(row))]
    steps = {cell.recipe["trainer"]["max_steps"] for cell in cells if cell.kind != "evaluate"}
    assert len(steps) == 1 and len({cell.digest for cell in cells}) == len(cells)


def test_the_page_of_studies_counts_their_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    folder = ROOT / "recipes" / "studies"
    rows = re.findall(r"^\| \[(\w[\w.-]+)\].*\| (\d+) \| (\d+) \|$", (folder / "README.md").read_text(), re.MULTILINE)
    found = {}
    for name in (path.name for path in folder.glob("*.yaml")):
        made = Study.load(folder / name)
        cells = sum(1 if row.spec.once else len(made.spec.seeds) for row in made.rows)
        found[name] = cells, sum(len(row.points) for row in made.rows)
    assert {name: (int(cells), int(trials)) for name, cells, trials in rows} == found


def test_the_study_of_the_documentation_can_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (block,) = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "docs" / "compare.md").read_text(), re.DOTALL | re.MULTILINE)
    (tmp_path / "documented.yaml").write_text(block)
    made = Study.load(tmp_path / "documented.yaml")
    assert [row.label for row in made.rows] == ["grpo", "kdrl", "rlad alpha=0.3", "rlad alpha=0.5", "sft", "teacher"]


def test_labels() -> None:
    assert shown({"method.alpha": 0.3, "trainer.learning_rate": 1e-4}) == "alpha=0.3 learning_rate=0.0001"
    assert shown({"method": {"name": "kdrl", "form": "k2"}}) == "form=k2"
    assert shown({"method": {"name": "kdrl"}}) == "method=kdrl"
