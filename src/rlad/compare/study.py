"""A study: one recipe, what varies over it, and an equal budget for all. Checked whole before the first cell runs.

    recipe: recipes/kk-methods/recipe.yaml
    set: {evaluate.samples: 4}                  # dotted overrides of every cell
    budget: {steps: 40}                         # or rollouts, or seconds of training; else the recipe's steps
    seeds: [1, 2, 3]
    baseline: grpo                              # what the paired tests compare with
    sweep: {seed: 0, set: {evaluate.split: validation}}
    cells:
      - {name: grpo, set: {method: grpo}}
      - {name: kdrl, set: {method: kdrl}, sweep: {method.coefficient: [0.005, 0.05, 0.2]}}
      - {name: rlad, set: {method: rlad}, grid: {method.alpha: [0.3, 0.5]}}
      - {name: sft, kind: sft, recipe: recipes/kk-sft/recipe.yaml}
      - {name: teacher, kind: evaluate, set: {model: embedded:teacher}}

A cell with a sweep is tried at each of its points (at most MOST_POINTS, and as many in every cell) with the sweep's
seed, and runs with the best. `grid`, in a cell or for all, makes a cell for each combination of values. `set` and
`grid` of the study are of its own recipe: a cell with another recipe says everything itself.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError
from pydantic import Field as Limits

from rlad.compare.identity import digest, normal
from rlad.errors import RladError
from rlad.trainer.config import Recipe, find_recipe, read_recipe, trainer_fields
from rlad.trainer.messages import model_problems
from rlad.trainer.rules import batches
from rlad.trainer.sections import Section

MOST_POINTS = 4
SWEEPS = "sweeps"  # the folder of all studies' trials
Kind = Literal["train", "sft", "evaluate"]
Settings = dict[str, Any]
Values = dict[str, Annotated[list[Any], Limits(min_length=1)]]
OURS = ("seed", "output")  # keys of a recipe that a study sets itself
LONGEST = 150  # letters of a cell's name, which is a file's too
LONGEST_FILE = 236  # of 255, less what files and temporary ones add (".job.json", ...)


class Budget(Section):
    """What every cell may use: updates, rollouts (responses trained on), or seconds of training. One of them."""

    steps: int | None = Limits(None, ge=1)
    rollouts: int | None = Limits(None, ge=1)
    seconds: float | None = Limits(None, gt=0)


class SweepSpec(Section):
    """How points are tried: with one seed, and these overrides on top (a validation split)."""

    seed: int = Limits(0, ge=0)
    set: Settings = Limits(default_factory=lambda: {"evaluate.split": "validation"})


class CellSpec(Section):
    """One row of the tables. recipe: another than the study's. once: with the study's first seed alone."""

    name: str = Limits(min_length=1)
    kind: Kind = "train"
    recipe: str | None = None
    set: Settings = Limits(default_factory=dict)
    grid: Values = Limits(default_factory=dict)
    sweep: Values = Limits(default_factory=dict)
    once: bool = False


class StudySpec(Section):
    """The file, as it is written."""

    recipe: str
    about: str = ""
    set: Settings = Limits(default_factory=dict)
    grid: Values = Limits(default_factory=dict)
    budget: Budget = Budget.model_validate({})
    seeds: list[int] = Limits(min_length=1)
    baseline: str | None = None
    sweep: SweepSpec = SweepSpec.model_validate({})
    cells: list[CellSpec] = Limits(min_length=1)


@dataclass(frozen=True)
class Cell:
    """One run. label: its row. settings: the dotted overrides that make it. recipe: plain data, checked, no output.

    seconds: where the budget is one of time. trial: part of a sweep. row: of a trial, the label of the row that is
    swept; "" of others, whose label it is.
    """

    label: str
    kind: Kind
    seed: int
    settings: Mapping[str, Any]
    recipe: Mapping[str, Any]
    seconds: float | None = None
    trial: bool = False
    row: str = ""

    @property
    def identity(self) -> dict[str, Any]:
        """What two runs must share to be the same run, every default written out."""
        return {"kind": self.kind, "budget_seconds": self.seconds, **normal(self.kind, self.recipe)}

    @property
    def digest(self) -> str:
        """Of the identity."""
        return digest(self.identity)

    @property
    def slug(self) -> str:
        """A file name. A trial's says its recipe as well, because all studies share the trials; its label is as long as
        its point, and is cut where a file's name would be too long."""
        end = f"-seed{self.seed}" + (f"-{self.digest[:8]}" if self.trial else "")
        return slug(self.label)[: LONGEST_FILE - len(end)] + end


@dataclass(frozen=True)
class Row:
    """A row of the tables: its cells, one a seed, or the trials that must be there before it has any.

    grid: its values of the grids. points: what each trial sets, beside `trials`. chosen: the point that won, {} without
    a sweep.
    """

    label: str
    spec: CellSpec
    grid: Mapping[str, Any]
    settings: Mapping[str, Any]
    points: Sequence[Mapping[str, Any]]
    chosen: Mapping[str, Any] | None

    def at(self, chosen: Mapping[str, Any]) -> Row:
        """The row with a point of its sweep."""
        return replace(self, chosen=chosen)


class Study:
    """A study that has passed every check: `Study.load(path)`."""

    def __init__(self, name: str, spec: StudySpec, path: Path) -> None:
        self.name, self.spec, self.path = name, spec, path
        self.rows = [row for cell in spec.cells for row in _rows(spec, cell)]
        self._check()

    @classmethod
    def load(cls, path: str | Path) -> Study:
        """Raises RladError for a study that is not there, is not YAML, or cannot run."""
        target = Path(path)
        if not target.is_file():
            raise RladError(f"there is no study {path}: give the path of a YAML file, as in recipes/studies")
        try:
            config = OmegaConf.load(target)  # as recipes are read: 1e-4 is a number
            data = OmegaConf.to_container(config, resolve=True)
        except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException) as error:
            raise RladError(f"the study {path} cannot be read: {' '.join(str(error).split())}") from None
        if not isinstance(data, dict):
            raise RladError(f"{path}: a study is a mapping with the keys {', '.join(StudySpec.model_fields)}")
        try:
            spec = StudySpec.model_validate(data)
        except ValidationError as error:
            sections: dict[str, type[BaseModel]] = {"budget": Budget, "sweep": SweepSpec}
            raise RladError(f"{path}: {'; '.join(model_problems(error, StudySpec, sections))}") from None
        return cls(target.stem, spec, target)

    @property
    def baseline(self) -> str:
        """The label of the row that the others are compared with: the first that trains, unless the study says."""
        trains = [row.label for row in self.rows if row.spec.kind != "evaluate"]
        return self.spec.baseline or (trains or [self.rows[0].label])[0]

    def trials(self, row: Row) -> list[Cell]:
        """The cells of its sweep, one a point; [] where there is none."""
        sweep = self.spec.sweep
        made = []
        for point in row.points:
            label = f"{row.label} {shown(point)}"
            cell = self._cell(row, {**row.settings, **point, **sweep.set}, sweep.seed, label)
            made.append(replace(cell, trial=True, row=row.label))
        return made

    def cells(self, row: Row) -> list[Cell]:
        """One a seed. The row's point must be chosen."""
        assert row.chosen is not None
        settings = {**row.settings, **row.chosen}
        return [self._cell(row, settings, seed, row.label) for seed in self.seeds(row)]

    def seeds(self, row: Row) -> list[int]:
        """Those of the row's cells."""
        return self.spec.seeds[:1] if row.spec.once else self.spec.seeds

    def _cell(self, row: Row, settings: Mapping[str, Any], seed: int, label: str) -> Cell:
        reference = row.spec.recipe or self.spec.recipe
        seconds = None if row.spec.kind == "evaluate" else self.spec.budget.seconds
        overrides = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
        try:
            _check_keys(list(settings))
            recipe = _checked(row.spec.kind, reference, [*overrides, f"seed={seed}"])
            recipe = _within(self.spec.budget, row.spec.kind, recipe)
        except RladError as error:
            raise RladError(f"{self.path}, {label}: {error}") from None
        return Cell(label, row.spec.kind, seed, settings, recipe, seconds)

    def _check(self) -> None:
        """Raises RladError for the first thing that is wrong."""
        spec, labels = self.spec, [row.label for row in self.rows]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        budgets = [each for each in (spec.budget.steps, spec.budget.rollouts, spec.budget.seconds) if each is not None]
        sizes = sorted({len(row.points) for row in self.rows if row.points})
        wrong = (
            (
                self.name == SWEEPS,
                f"the folder {SWEEPS} is for the trials of all studies: give the file another name",
            ),
            (twice, f"two cells are called {(twice or [''])[0]!r}: give each its own name"),
            (len(set(spec.seeds)) < len(spec.seeds), "seeds: a seed is there twice, and would be counted twice"),
            (len(budgets) > 1, "budget: give one of steps, rollouts and seconds"),
            (
                self.baseline not in labels,
                f"baseline: there is no cell {self.baseline!r}; cells: {', '.join(labels)}",
            ),
            (
                sizes and sizes[-1] > MOST_POINTS,
                f"sweep: {(sizes or [0])[-1]} points; a sweep has at most {MOST_POINTS}",
            ),
            (
                len(sizes) > 1,
                f"sweep: {' and '.join(map(str, sizes))} points: give every cell a sweep of the same size",
            ),
            (
                sizes and spec.sweep.seed in spec.seeds,
                f"sweep.seed: {spec.sweep.seed} is one of the seeds: give the sweep its own",
            ),
        )
        for found, sentence in wrong:
            if found:
                raise RladError(f"{self.path}: {sentence}")
        self._check_names(labels)
        for row in self.rows:
            for cell in self.trials(row) if row.chosen is None else self.cells(row):
                if cell.trial and (cell.recipe.get("evaluate") or {}).get("split") != "validation":
                    raise RladError(
                        f"{self.path}: sweep.set: must set evaluate.split to validation: the test split is not tuned on"
                    )

    def _check_names(self, labels: Sequence[str]) -> None:
        """Each is a file's name and stands in a table."""
        known: dict[str, str] = {}
        for label in labels:
            plain = slug(label)
            if not plain or len(plain) > LONGEST or "|" in label or "\n" in label:
                raise RladError(
                    f"{self.path}: a cell cannot be called {label!r}: use letters and digits, {LONGEST} at most, and "
                    "neither | nor line breaks"
                )
            other = known.setdefault(plain.casefold(), label)
            if other != label:
                raise RladError(
                    f"{self.path}: {other!r} and {label!r} would be one file, {plain}: give each its own name"
                )


def _check_keys(keys: Sequence[str]) -> None:
    """Settings are applied in this order: none may be lost without a word."""
    for place, key in enumerate(keys):
        if key in OURS:
            raise RladError(f"{key}: a study sets it itself: give seeds in `seeds`, and folders with --runs")
        if later := [other for other in keys[place + 1 :] if key.startswith(f"{other}.")]:
            raise RladError(
                f"{key}: is lost, because {later[0]} takes the place of the whole section after it: write it there"
            )


def slug(label: str) -> str:
    """A file name of a label."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", label).strip("-")


def shown(settings: Mapping[str, Any]) -> str:
    """Settings as a label: `alpha=0.3`. Of a mapping, what it holds beside a name, or else the name."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        inside = {k: v for k, v in value.items() if k != "name"} if isinstance(value, Mapping) else {}
        plain = value.get("name", value) if isinstance(value, Mapping) else value
        flat |= inside or {key.rpartition(".")[2]: plain}
    return " ".join(f"{key}={value}" for key, value in flat.items())


def _rows(spec: StudySpec, cell: CellSpec) -> list[Row]:
    """One for each combination of the grids' values."""
    grid = {**spec.grid, **cell.grid} if cell.recipe is None else cell.grid
    points = combinations(cell.sweep) if cell.sweep else []
    return [
        Row(
            label=" ".join(filter(None, (cell.name, shown(values)))),
            spec=cell,
            grid=values,
            settings={**(spec.set if cell.recipe is None else {}), **cell.set, **values},
            points=points,
            chosen=None if points else {},
        )
        for values in combinations(grid)
    ]


def combinations(grid: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Every choice of one value for each key."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def _checked(kind: Kind, reference: str, overrides: Sequence[str]) -> dict[str, Any]:
    data = read_recipe(find_recipe(reference), overrides)
    data["output"] = "set-by-compare"
    if kind == "sft":
        from rlad.offline.config import SftRecipe

        recipe: dict[str, Any] = yaml.safe_load(SftRecipe.from_mapping(data).to_yaml())
    else:
        recipe = yaml.safe_load(Recipe.from_mapping(data).to_yaml())
    del recipe["output"]
    if recipe.get("stages"):
        raise RladError("stages: a study compares single runs: leave the stages out")
    if kind == "evaluate" and recipe["evaluate"] is None:
        raise RladError("kind: evaluate needs `evaluate` in the recipe")
    return recipe


def _within(budget: Budget, kind: Kind, recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe with the steps that the budget pays for."""
    if kind == "evaluate":
        return recipe
    steps = budget.steps
    if budget.seconds is not None and kind == "sft":
        raise RladError("budget.seconds: rlad sft cannot be stopped by the clock: give the study steps or rollouts")
    if budget.rollouts is not None:
        a_step = rollouts_a_step(kind, recipe)
        steps, rest = divmod(budget.rollouts, a_step)
        if rest or not steps:
            raise RladError(f"budget.rollouts: {budget.rollouts} is not a multiple of the {a_step} of an update")
    if steps is None:
        return recipe
    return {**recipe, "trainer": {**recipe["trainer"], "max_steps": steps}}


def rollouts_a_step(kind: Kind, recipe: Mapping[str, Any]) -> int:
    """Responses that one update is made of."""
    sizes = ("per_device_train_batch_size", "gradient_accumulation_steps", "num_iterations", "generation_batch_size")
    known = trainer_fields()
    values = {name: recipe["trainer"].get(name, known[name][1]) for name in (*sizes, "steps_per_generation")}
    if kind == "sft":
        values |= {"num_iterations": 1, "generation_batch_size": None, "steps_per_generation": None}
    return batches(values).rollouts_per_update
