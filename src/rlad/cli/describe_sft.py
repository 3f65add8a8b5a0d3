"""What a recipe of `rlad sft` would run, for `rlad check`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlad.offline.config import SftRecipe


def sft_description(recipe: SftRecipe) -> list[str]:
    """What would run, one fact a line."""
    from rlad.cli.describe import evaluation_line, model_line, output_line, task_line, validation_lines

    sft = recipe.sft
    teacher = str(recipe.teacher) if recipe.teacher else "none: the traces are there"
    made = f"{sft.samples} of each of {sft.problems or 'all'} problems, at most {sft.per_problem} kept of one"
    sampled = f"temperature {sft.temperature:g}, top-p {sft.top_p:g}, {sft.max_new_tokens} tokens at most"
    values = recipe.all_arguments()
    update = values["per_device_train_batch_size"] * values["gradient_accumulation_steps"]
    steps = values["max_steps"]
    length = f"{steps} updates" if steps > 0 else f"{values['num_train_epochs']:g} epochs"
    return [
        f"{'student':<10}{model_line(recipe.model)}",
        f"{'teacher':<10}{teacher}",
        f"{'method':<10}sft: mean negative log-likelihood of the response's tokens, on the teacher's correct answers",
        f"{'traces':<10}{recipe.traces}" + (f": {made}, at {sampled}" if recipe.teacher else ""),
        f"{'task':<10}{task_line(recipe.task)}",
        f"{'steps':<10}{length} of {update} traces",
        f"{'evaluate':<10}{evaluation_line(recipe.evaluate)}",
        *validation_lines(recipe.validate_spec),
        f"{'output':<10}{output_line(recipe.output)}",
    ]
