"""What a run would hold in memory, from the models' configurations alone: no weights are read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from rlad.trainer.config import Recipe
    from rlad.trainer.sections import ModelSpec

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


class Shape(NamedTuple):
    """config: transformers' own. parameters, trained: how many. saved: bytes of a weight as it is saved."""

    config: Any
    parameters: int
    trained: int
    saved: int


def memory(recipe: Recipe) -> list[str]:
    """Lines for `rlad check`: the student with gradients and AdamW, the teacher, the cache of a generation.

    A model that is not on this disk (or in the hub's cache) is not estimated, and the line says so. Activations are
    left out: they depend on kernels and checkpointing.
    """
    from rlad.trainer.sections import ModelSpec, SharedBaseSpec

    arguments = recipe.all_arguments()
    lines = []
    student = _shape(recipe.model)
    if student is None:
        lines.append(f"{recipe.model.path} is not on this disk: not estimated")
    else:
        size = BYTES.get(recipe.model.dtype or "float32", student.saved)
        trained = f", {student.trained / 1e6:,.1f} M trained" if student.trained != student.parameters else ""
        lines.append(
            f"student {_human(student.parameters * size)} of weights, {_human(student.trained * size)} of gradients, "
            f"{_human(2 * student.trained * size)} of AdamW ({student.parameters / 1e6:,.1f} M parameters{trained})"
        )
        lines += _generations(recipe, arguments, _cache_bytes(student.config, size))
    teacher = recipe.teacher
    if isinstance(teacher, ModelSpec) and recipe.make_method().needs_teacher:
        found = _shape(teacher)
        if found is None:
            lines.append(f"{teacher.path} is not on this disk: not estimated")
        else:
            weights = _human(found.parameters * BYTES.get(teacher.dtype or "auto", found.saved))
            lines.append(f"teacher {weights} of weights ({found.parameters / 1e6:,.1f} M parameters)")
    elif isinstance(teacher, SharedBaseSpec):
        lines.append("teacher: an adapter on the student's weights, no others")
    return [*lines, "activations besides"]


def _generations(recipe: Recipe, arguments: dict[str, Any], per_token: int) -> list[str]:
    """A line for the cache of rollouts, and of each evaluation. per_token: its bytes."""
    from rlad.trainer.rules import batches

    if arguments["use_vllm"]:
        share = arguments["vllm_gpu_memory_utilization"]
        return [f"generation vLLM's {share:.0%} of the GPU where it is in the training process, for evaluations too"]
    length = arguments["max_completion_length"]
    made = [("generation", batches(arguments).rollouts, length)]
    for name, spec in (("evaluation", recipe.evaluate), ("validation", recipe.validate_spec)):
        if spec is not None:
            made.append((name, min(spec.batch_size, spec.puzzles * spec.samples), spec.max_new_tokens or length))
    return [
        f"{name} {_human(count * tokens * per_token)} of keys and values for {count} responses of {tokens} tokens, "
        "prompts besides"
        for name, count, tokens in made
    ]


def _shape(spec: ModelSpec) -> Shape | None:
    """Of a model that is here; None where it is not."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from rlad.errors import RladError
    from rlad.models import resolve
    from rlad.trainer.sections import StudentSpec

    try:
        config = AutoConfig.from_pretrained(resolve(spec.path), revision=spec.revision, local_files_only=True)
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(config)
            if isinstance(spec, StudentSpec) and spec.lora is not None:
                from peft import get_peft_model

                model = get_peft_model(model, spec.lora.peft_config())
    except (OSError, ValueError, RladError):
        return None
    saved = str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")
    counts = [(each.numel(), each.requires_grad) for each in model.parameters()]
    trained = sum(count for count, train in counts if train)
    return Shape(config, sum(count for count, _ in counts), trained, BYTES.get(saved, 4))


def _cache_bytes(config: Any, size: int) -> int:
    """Of keys and values, for each token."""
    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return int(2 * text.num_hidden_layers * heads * width * size)


def _human(size: float) -> str:
    unit, step = next((each for each in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)) if size >= each[1]), ("B", 1.0))
    return f"{size / step:,.3g} {unit}" if size / step < 1000 else f"{size / step:,.0f} {unit}"
