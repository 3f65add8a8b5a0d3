"""Recipes: what is read, what is refused, and how the refusal helps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlad.errors import RladError
from rlad.objectives import GRPO, KDRL, METHODS, RLAD
from rlad.trainer.config import OUR_FIELDS, Recipe, RecipeError, find_recipe, grpo_fields, packaged_recipes
from rlad.trainer.options import PAPER_DEFAULTS, cautions


def recipe(**changes: Any) -> Recipe:
    """A recipe like the smallest one, with top-level keys changed; None takes a key away."""
    data: dict[str, Any] = {
        "model": "embedded:student",
        "teacher": "embedded:teacher",
        "task": "knights_knaves",
        "method": "rlad",
        "trainer": {"use_cpu": True, "bf16": False},
    }
    data.update(changes)
    return Recipe.from_mapping({key: value for key, value in data.items() if value is not None})


def problems(**changes: Any) -> tuple[str, ...]:
    with pytest.raises(RecipeError) as caught:
        recipe(**changes)
    return caught.value.problems


def written(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


SMALLEST = "model: embedded:student\nteacher: embedded:teacher\ntask: knights_knaves\nmethod: rlad\n"


def test_shorthands_stand_for_the_mappings() -> None:
    long = recipe(model={"path": "embedded:student"}, task={"name": "knights_knaves"}, method={"name": "rlad"})
    assert recipe() == long
    assert recipe().make_method() == RLAD()


def test_the_defaults_are_the_papers() -> None:
    arguments = recipe(trainer=None).trainer_arguments()
    expected = {"loss_type": "grpo", "beta": 0.0, "temperature": 1.0, "scale_rewards": "group", "num_generations": 8}
    expected |= {"learning_rate": 1e-6, "use_bias_correction_kl": False, "report_to": "none"}
    assert arguments.items() >= expected.items()
    assert (arguments["epsilon"], arguments["epsilon_high"]) == (0.2, 0.28)
    assert arguments["seed"] == 0 and arguments["output_dir"] == "runs/rlad"
    assert PAPER_DEFAULTS.keys() <= grpo_fields().keys()


def test_every_step_is_logged_unless_the_recipe_says_otherwise() -> None:
    assert recipe().trainer_arguments()["logging_steps"] == 1
    assert recipe(trainer={"logging_steps": 7}).trainer_arguments()["logging_steps"] == 7


def test_the_clip_range_that_trl_sees_is_the_methods() -> None:
    arguments = recipe(method={"name": "rlad", "clip_low": 0.1, "clip_high": 0.3}).trainer_arguments()
    assert (arguments["epsilon"], arguments["epsilon_high"]) == (0.1, 0.3)
    assert "set method.clip_high instead" in problems(trainer={"epsilon_high": 0.4})[0]
    assert recipe(trainer={"epsilon_high": 0.28}).trainer["epsilon_high"] == 0.28


def test_our_own_trainer_fields_are_those_of_rlad_config() -> None:
    from rlad import RLADConfig

    defaults = {name: field.default for name, field in RLADConfig.__dataclass_fields__.items()}
    ours = {name: default for name, default in defaults.items() if name not in grpo_fields()}
    assert ours.pop("method") == "rlad"
    assert ours == {name: default for name, (_, default) in OUR_FIELDS.items()}
    given = {"advantage_std": "sample", "max_broken_teacher": 0.1}
    assert recipe(trainer=given).trainer_arguments().items() >= given.items()


def test_an_rlad_config_has_the_same_defaults_as_a_recipe() -> None:
    from rlad import RLADConfig

    made = RLADConfig(output_dir="unused", use_cpu=True, bf16=False)
    for name, value in PAPER_DEFAULTS.items():
        assert getattr(made, name) == ([] if name == "report_to" else value), name


def test_trainer_values_win_over_the_papers() -> None:
    assert recipe(trainer={"learning_rate": 2e-4}).trainer_arguments()["learning_rate"] == 2e-4


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_can_be_named(name: str) -> None:
    assert type(recipe(method=name).make_method()) is METHODS[name]


def test_a_method_takes_its_own_values() -> None:
    assert recipe(method={"name": "kdrl", "coefficient": 0.2, "form": "reward"}).make_method() == KDRL(
        coefficient=0.2, form="reward"
    )
    assert recipe(method={"name": "rlad", "teacher_clip": None, "alpha": 1}).make_method() == RLAD(
        teacher_clip=None, alpha=1
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"teecher": "x"}, ["teecher: unknown key", "did you mean teacher?", "allowed: model, teacher, task"]),
        ({"model": None}, ["model: is missing"]),
        ({"task": None}, ["task: is missing"]),
        ({"model": {"path": "x", "dtipe": "auto"}}, ["model.dtipe: unknown key", "did you mean model.dtype?"]),
        ({"model": 3}, ["model:", "not 3"]),
        ({"model": {"path": "x", "dtype": "int8"}}, ["model.dtype", "'float32'", "'int8'"]),
        ({"method": "rladd"}, ["method.name: there is no method 'rladd'", "did you mean 'rlad'?"]),
        ({"method": {"alpha": 0.5}}, ["method.name"]),
        ({"method": {"name": "grpo", "alpha": 0.5}}, ["method.alpha: unknown key", "allowed for grpo: clip_low"]),
        ({"method": {"name": "rlad", "alfa": 0.5}}, ["method.alfa", "did you mean method.alpha?"]),
        ({"method": {"name": "rlad", "alpha": "0.5"}}, ["method.alpha: must be float, not '0.5'", "quotes"]),
        ({"method": {"name": "rlad", "alpha": 2.0}}, ["method rlad: alpha is 2.0"]),
        ({"method": {"name": "rlad", "alpha": True}}, ["method.alpha: must be float, not True"]),
        ({"method": {"name": "kdrl", "form": "k1"}}, ["zero expected gradient", "use 'k2'"]),
        ({"method": {"name": "rlad", "teacher_clip_gradient": "x"}}, ["method rlad", "'x'"]),
        ({"task": {"people": [2]}}, ["task: needs `name`"]),
        ({"task": {"prompts": "x.jsonl"}}, ["task: needs `name`", "`reward`"]),
        ({"trainer": {"learning_rat": 1.0}}, ["trainer.learning_rat: unknown key", "trainer.learning_rate?"]),
        ({"trainer": {"max_steps": "40"}}, ["trainer.max_steps: must be int, not '40'"]),
        ({"trainer": {"max_steps": 4.5}}, ["trainer.max_steps: must be int, not 4.5"]),
        ({"trainer": {"max_steps": True}}, ["trainer.max_steps: must be int, not True"]),
        ({"trainer": {"learning_rate": float("nan")}}, ["trainer.learning_rate: must be a finite number"]),
        ({"trainer": {"save_strategy": False}}, ["trainer.save_strategy", "unquoted yes, no"]),
        ({"trainer": {"lr_scheduler_type": "cosin"}}, ["trainer.lr_scheduler_type", "did you mean 'cosine'?"]),
        ({"trainer": {"optim": "adamw_trch"}}, ["trainer.optim", "did you mean 'adamw_torch'?"]),
        ({"trainer": []}, ["trainer:", "not []"]),
        ({"trainer": {"disable_tqdm": True}}, ["trainer.disable_tqdm: leave it out"]),
        ({"trainer": {"advantage_std": "none"}}, ["trainer.advantage_std: must be one of 'population', 'sample'"]),
        ({"trainer": {"output_dir": "x"}}, ["trainer.output_dir: say it with `output`"]),
        ({"trainer": {"seed": 3}}, ["trainer.seed: say it with `seed`"]),
        ({"trainer": {"eval_strategy": "steps"}}, ["trainer.eval_strategy: say it with `evaluate`"]),
        ({"evaluate": {"puzles": 3}}, ["evaluate.puzles", "did you mean evaluate.puzzles?"]),
        ({"evaluate": {"puzzles": 0}}, ["evaluate.puzzles", "greater than or equal to 1"]),
        ({"evaluate": {"split": "train"}}, ["evaluate.split", "'test'"]),
        ({"evaluate": {"top_p": 0}}, ["evaluate.top_p"]),
        ({"seed": -1}, ["seed"]),
        ({"output": ""}, ["output"]),
    ],
)
def test_mistakes_are_named_with_advice(changes: dict[str, Any], words: list[str]) -> None:
    data: dict[str, Any] = {"model": "embedded:student", "teacher": "embedded:teacher", "task": "knights_knaves"}
    data |= {"method": "rlad", **changes}
    with pytest.raises(RecipeError) as caught:
        Recipe.from_mapping({key: value for key, value in data.items() if value is not None})
    assert len(caught.value.problems) == 1, caught.value.problems
    for word in words:
        assert word in str(caught.value)


def test_everything_that_is_wrong_is_found_at_once() -> None:
    found = problems(
        seed="x", method={"name": "rlad", "alpha": 2}, trainer={"delta": 2.0, "num_generations": 7, "maxsteps": 1}
    )
    assert len(found) == 5
    for word in ("seed", "alpha", "delta", "groups of 7", "maxsteps"):
        assert any(word in each for each in found), word
    with pytest.raises(RecipeError, match=r"and 4 more: `rlad check` lists them all"):
        raise RecipeError(found)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.needs_teacher])
def test_a_method_that_needs_a_teacher_is_refused_without_one(name: str) -> None:
    assert f"method {name} needs one and there is none" in problems(teacher=None, method=name)[0]


def test_grpo_needs_no_teacher() -> None:
    assert recipe(teacher=None, method="grpo").make_method() == GRPO()


@pytest.mark.parametrize(
    ("trainer", "words"),
    [
        ({"temperature": 0.0}, "temperature: must be above 0"),
        ({"min_p": 0.1}, "min_p: 0.1 is refused: tokens would be drawn from another distribution"),
        ({"generation_kwargs": {"top_p": 0.9}}, "generation_kwargs.top_p: 0.9 is refused"),
        ({"generation_kwargs": {"num_beams": 4}}, "generation_kwargs.num_beams: 4 is refused"),
        ({"generation_kwargs": {"min_length": 9}}, "generation_kwargs.min_length: is refused: it is not known to"),
        ({"generation_kwargs": {"logit_bias": {1: 2}}}, "generation_kwargs.logit_bias: is refused: it is not known to"),
        ({"vllm_structured_outputs_regex": "a*"}, "vllm_structured_outputs_regex: a* is refused"),
        ({"pad_to_multiple_of": 64}, "pad_to_multiple_of: trim_padding cuts it off again"),
        ({"max_broken_teacher": 1.5}, "max_broken_teacher: must be a share from 0 to 1, not 1.5"),
        ({"generation_kwargs": "{}"}, "generation_kwargs: give a mapping"),
        ({"loss_type": "cispo"}, "loss_type: cispo is refused"),
        ({"importance_sampling_level": "sequence"}, "importance_sampling_level: sequence is refused"),
        ({"off_policy_mask_threshold": 0.5}, "off_policy_mask_threshold: 0.5 is refused"),
        ({"beta": 0.01, "use_bias_correction_kl": True}, "beta: 0.01 needs trainer.use_bias_correction_kl: false"),
        ({"scale_rewards": "batch"}, "scale_rewards: batch is refused"),
        ({"num_generations": 1}, "a group needs at least 2 responses"),
        ({"num_generations": 3}, "does not hold whole groups of 3"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size: must be at least 1"),
        ({"generation_batch_size": 12}, "generation_batch_size: 12 must be a multiple of a micro-batch's 8 rollouts"),
        ({"generation_batch_size": 16, "steps_per_generation": 2}, "not both"),
        ({"num_iterations": 2, "save_steps": 25, "max_steps": 40}, "save_steps: 25 must be a multiple of 2"),
        ({"num_iterations": 2, "save_steps": 20, "max_steps": 41}, "max_steps: 41 must be a multiple of 2"),
        ({"steps_per_generation": 4, "save_steps": 6, "max_steps": 40}, "save_steps: 6 must be a multiple of 4"),
        ({"num_iterations": 3, "save_steps": 0.5, "max_steps": 15}, "save_steps: 0.5 must be a multiple of 3"),
        ({"num_iterations": 2, "save_strategy": "best"}, "save_strategy: best can save anywhere"),
    ],
)
def test_bad_combinations_are_refused(trainer: dict[str, Any], words: str) -> None:
    found = problems(trainer=trainer)
    assert len(found) == 1, found
    assert words in found[0]


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"top_p": 0.9}, ["trainer.top_p"]),
        ({"top_k": 20, "top_p": 1}, ["trainer.top_k"]),
        ({"top_p": 1.0, "top_k": 0}, []),
        ({"temperature": 0.7}, []),
        ({}, []),
    ],
)
def test_sampling_from_a_part_of_the_distribution_is_warned_about(values: dict[str, Any], names: list[str]) -> None:
    assert recipe(trainer=values).trainer == values
    found = cautions(values, "rlad", "trainer.")
    assert [each.split(":")[0] for each in found] == names
    assert all("drawn from another distribution" in each for each in found)


def test_a_least_length_is_for_timings() -> None:
    trainer = {"generation_kwargs": {"min_new_tokens": 128}}
    assert recipe(trainer=trainer).trainer == trainer
    (found,) = cautions(trainer, "rlad", "trainer.")
    assert found.startswith("trainer.generation_kwargs.min_new_tokens: 128: no response ends before")


def test_refilling_is_warned_about_where_the_dropped_groups_would_teach() -> None:
    told = [name for name in METHODS if cautions({"groups": "refill"}, name)]
    assert told == ["kdrl", "kdrl-mask", "kdrl-annealed", "opd", "opd-then-grpo", "srpo"]  # hdpo is refused
    assert not [name for name in METHODS if cautions({"groups": "keep"}, name)]


def test_one_thing_under_two_names_is_refused() -> None:
    if "activation_checkpointing" not in grpo_fields():
        pytest.skip("this transformers has the old name alone")
    assert "not both" in problems(trainer={"gradient_checkpointing": True, "activation_checkpointing": False})[0]


@pytest.mark.parametrize(
    "trainer",
    [
        {"beta": 0.01},
        {"scale_rewards": False},
        {"scale_rewards": "none"},
        {"loss_type": "dapo"},
        {"generation_kwargs": {"top_p": 1.0, "renormalize_logits": True}},
        {"generation_kwargs": {"stop_token_ids": [7]}},
        {"pad_to_multiple_of": 64, "trim_padding": False},
        {"max_broken_teacher": 1.0},
        {"top_p": 1},
        # 4 micro-batches of 8 rollouts are generated at once and used up by every update: any step will do.
        {"gradient_accumulation_steps": 4, "save_steps": 7},
        {"gradient_accumulation_steps": 4, "steps_per_generation": 2, "save_steps": 7},
        # 4 micro-batches, two a update, two passes: used up after 4 updates.
        {"gradient_accumulation_steps": 2, "steps_per_generation": 4, "num_iterations": 2, "save_steps": 8},
        {"num_iterations": 2, "save_steps": 25, "save_strategy": "no", "max_steps": 41},
        {"num_iterations": 2, "save_steps": 0.5, "max_steps": 8},
        {"num_iterations": 2, "save_strategy": "epoch"},
    ],
)
def test_good_combinations_pass(trainer: dict[str, Any]) -> None:
    assert recipe(trainer=trainer).trainer == trainer


@pytest.mark.parametrize("method", ["grpo", "rlad"])
def test_rollouts_may_be_sampled_at_another_temperature(method: str) -> None:
    assert recipe(method=method, trainer={"temperature": 0.7}).trainer == {"temperature": 0.7}


def test_the_batch_is_counted_over_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = {"per_device_train_batch_size": 4, "num_generations": 8}
    assert "groups of 8" in problems(trainer=trainer)[0]
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert recipe(trainer=trainer).trainer == trainer


def test_overrides_are_yaml_and_win(tmp_path: Path) -> None:
    path = written(tmp_path, SMALLEST + "trainer: {max_steps: 3, use_cpu: true}\n")
    overrides = ["method.alpha=0.3", "trainer.max_steps=5", "trainer.learning_rate=1e-4", "evaluate={puzzles: 7}"]
    made = Recipe.resolve(path, [*overrides, "task.people=[2, 3]", "output=runs/a=b"])
    assert made.make_method() == RLAD(alpha=0.3)
    assert made.trainer == {"max_steps": 5, "use_cpu": True, "learning_rate": 1e-4}
    assert made.evaluate is not None and made.evaluate.puzzles == 7
    assert made.task == {"name": "knights_knaves", "people": [2, 3]}
    assert made.output == "runs/a=b"


def test_an_override_replaces_a_mapping(tmp_path: Path) -> None:
    path = written(tmp_path, SMALLEST.replace("method: rlad", "method: {name: rlad, alpha: 0.3}"))
    assert Recipe.resolve(path, ["method={name: rlad}"]).make_method() == RLAD()
    assert Recipe.resolve(path, ["method=kdrl", "method.coefficient=0.1"]).make_method() == KDRL(coefficient=0.1)
    assert Recipe.resolve(path, ["method=grpo", "teacher=null"]).teacher is None
    with pytest.raises(RecipeError, match=r"method\.alpha: unknown key"):
        Recipe.resolve(path, ["method.name=grpo"])


@pytest.mark.parametrize("override", ["alpha", "=3", "a..b=3", ".a=3", "trainer.max_steps=[1"])
def test_what_is_no_override_is_refused(tmp_path: Path, override: str) -> None:
    with pytest.raises(RladError, match=r"override|not YAML"):
        Recipe.resolve(written(tmp_path, SMALLEST), [override])


def test_values_can_refer_to_each_other(tmp_path: Path) -> None:
    made = Recipe.resolve(written(tmp_path, SMALLEST + "seed: 5\noutput: runs/seed-${seed}\n"), ["seed=6"])
    assert made.output == "runs/seed-6"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (SMALLEST + "seed: 1\nseed: 2\n", "duplicate key seed"),
        (SMALLEST + "trainer: {max_steps: 1, max_steps: 2}\n", "duplicate key max_steps"),
        ("model: [1", "line"),
        ("- model\n", "a recipe is a mapping"),
        (SMALLEST + "output: ${nowhere}\n", "nowhere"),
        (SMALLEST + "output: ???\n", "output"),
        (SMALLEST + "seed: !!python/object/apply:os.getcwd []\n", "constructor"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(RladError, match=words) as caught:
        Recipe.resolve(path)
    assert "\n" not in str(caught.value) and path in str(caught.value)


def test_numbers_are_read_as_yaml_1_2_reads_them(tmp_path: Path) -> None:
    made = Recipe.resolve(written(tmp_path, SMALLEST + "trainer: {learning_rate: 1e-6}\n"))  # plain PyYAML: a text
    assert made.trainer == {"learning_rate": 1e-6}


def test_the_output_is_named_after_the_recipe(tmp_path: Path) -> None:
    assert Recipe.resolve(written(tmp_path, SMALLEST)).output == "runs/mine"
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "recipe.yaml").write_text(SMALLEST, encoding="utf-8")
    assert Recipe.resolve(str(tmp_path / "folder")).output == "runs/folder"


def test_recipes_that_travel_with_the_package_are_found_and_pass() -> None:
    assert "quickstart" in packaged_recipes()
    for name in packaged_recipes():
        assert find_recipe(name).is_file()
        made = Recipe.resolve(name)
        assert made.output == f"runs/{name}"


def test_a_recipe_that_is_not_there_is_named() -> None:
    with pytest.raises(RladError, match=r"no recipe 'quickstrat'.*did you mean 'quickstart'"):
        Recipe.resolve("quickstrat")


def test_a_recipe_written_out_reads_back_the_same(tmp_path: Path) -> None:
    made = Recipe.resolve("quickstart", ["method.alpha=0.3", "trainer.learning_rate=1e-6"])
    assert Recipe.resolve(written(tmp_path, made.to_yaml())) == made


def test_a_model_says_how_to_load_it() -> None:
    made = recipe(model={"path": "org/name", "dtype": "bfloat16", "revision": "main"})
    expected = {"dtype": "bfloat16", "revision": "main", "trust_remote_code": False}
    assert made.model.load_kwargs() == expected


@pytest.mark.parametrize(
    ("method", "trainer", "words"),
    [
        (
            "hdpo",
            {"groups": "refill"},
            "trainer.groups: refill drops the groups that are all wrong, which are those that",
        ),
        ("rlad", {"refill_rounds": 0}, "trainer.refill_rounds: must be at least 1"),
        ("rlad", {"record_every": -1}, "trainer.record_every must be at least 0"),
        (
            "rlad",
            {"save_total_limit": 1},
            "trainer.save_total_limit: 1 would remove the last checkpoint before the next",
        ),
    ],
)
def test_our_own_fields_are_refused_before_anything_loads(method: str, trainer: dict[str, Any], words: str) -> None:
    found = problems(method=method, trainer=trainer)
    assert len(found) == 1 and words in found[0], found


@pytest.mark.parametrize(
    ("method", "trainer"),
    [("hdpo", {"groups": "keep"}), ("rlad", {"groups": "refill"}), ("rlad", {"save_total_limit": 2})],
)
def test_and_their_neighbours_pass(method: str, trainer: dict[str, Any]) -> None:
    assert recipe(method=method, trainer=trainer).trainer == trainer


@pytest.mark.parametrize(
    "asked", [{"evaluate": {"puzzles": 5}}, {"trainer": {"fsdp": "full_shard", "validate": {"every": 2}}}]
)
def test_a_student_in_parts_is_not_evaluated_by_one_process(asked: dict[str, Any]) -> None:
    sharded = {"trainer": {"fsdp": "full_shard"}, "evaluate": None} | asked
    found = problems(**sharded)
    assert len(found) == 1 and "only the main process would evaluate it" in found[0]
    recipe(trainer={"fsdp": "full_shard", "validate": None}, evaluate=None)
