"""The sections of a recipe: `model`, the many forms of `teacher`, `evaluate`, and `trainer.validate`.

teacher: embedded:teacher                       # here: a path or hub id, or {path, revision, alignment, ...}
teacher: http://host:port                       # served by vLLM, or {url or urls, model, api_key_env, ...}
teacher: {by_task: {math: ..., logic: ...}}     # one for each value of the column `task`, each any of the above

"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic import Field as Limits

from rlad.errors import RladError
from rlad.trainer.messages import model_problems

Alignment = Literal["tokens", "spans"]
# As environment variables are written, and keys are not: a key put there by mistake would be saved with the recipe.
VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")


class Section(BaseModel):
    """A part of a recipe: no other keys, no other types, and never changed once it is checked."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class ModelSpec(Section):
    """A model by hub id, path, or embedded:NAME, and how to load it. dtype None: as TRL and transformers choose."""

    path: str = Limits(min_length=1)
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16", "auto"] | None = None
    attn_implementation: str | None = None
    trust_remote_code: bool = False

    def load_kwargs(self) -> dict[str, Any]:
        """Keyword arguments for from_pretrained: what the recipe says, and nothing for what it leaves open."""
        return self.model_dump(exclude={"path"}, exclude_none=True)

    def __str__(self) -> str:
        return self.path


class LoraSpec(Section):
    """A LoRA adapter to train in place of the whole student. The names are peft.LoraConfig's, alpha its lora_alpha.

    No dropout: the old policy's log-probs and the student's would differ by its noise.
    """

    r: int = Limits(16, ge=1)
    alpha: int = Limits(32, ge=1)
    target_modules: str | list[str] = "all-linear"

    def peft_config(self) -> Any:
        """The peft.LoraConfig."""
        from peft import LoraConfig

        return LoraConfig(r=self.r, lora_alpha=self.alpha, target_modules=self.target_modules, task_type="CAUSAL_LM")


class StudentSpec(ModelSpec):
    """The model that is trained.

    lora: train an adapter on it, and leave its own weights alone. open_think: let the prompt end in <think>, in
    training and evaluation: the chat template writes it where the response begins. eos_token: what ends a response, for
    a base model whose tokenizer ends texts otherwise than its teacher ends answers; the model that is saved keeps it.
    """

    lora: LoraSpec | None = None
    open_think: bool = False
    eos_token: str | None = Limits(None, min_length=1)

    def load_kwargs(self) -> dict[str, Any]:
        """As ModelSpec's: the adapter is made, and template and end are set, later."""
        ours = ("lora", "open_think", "eos_token")
        return {key: value for key, value in super().load_kwargs().items() if key not in ours}


class LocalTeacherSpec(ModelSpec):
    """A teacher in this process.

    adapter: a PEFT adapter on it, by hub id or path. device_map: accelerate's, such as "auto" to spread it over the
    devices there are. quantization: transformers' own, as {quant_method: bitsandbytes, load_in_4bit: true}.
    alignment: of its tokens with the student's (docs/teacher.md).
    """

    adapter: str | None = Limits(None, min_length=1)
    device_map: str | None = Limits(None, min_length=1)
    quantization: dict[str, Any] | None = Limits(None, min_length=1)
    alignment: Alignment = "tokens"

    def load_kwargs(self) -> dict[str, Any]:
        """Keyword arguments for LocalTeacher.load."""
        kwargs = super().load_kwargs()
        kwargs.pop("alignment")
        quantization = kwargs.pop("quantization", None)
        return kwargs if quantization is None else {**kwargs, "quantization_config": quantization}


class SharedBaseSpec(Section):
    """A teacher that is an adapter on the student's own base: `rlad.teacher.local.SharedBase`. Needs model.lora."""

    adapter: str = Limits(min_length=1)

    def __str__(self) -> str:
        return f"{self.adapter} on the student's own base"


class ServerSpec(Section):
    """A served teacher: the arguments of `rlad.teacher.server.ServerTeacher`, and the alignment of its tokens with the
    student's. Exactly one of url and urls is given."""

    url: str | None = None
    urls: list[str] | None = Limits(None, min_length=1)
    model: str | None = Limits(None, min_length=1)
    api_key_env: str | None = None
    concurrency: int = Limits(32, ge=1)
    timeout: float = Limits(120.0, gt=0, allow_inf_nan=False)
    retries: int = Limits(6, ge=0)
    tokenizer: str | None = Limits(None, min_length=1)
    alignment: Alignment = "tokens"

    @property
    def addresses(self) -> list[str]:
        """Of the server, or of each replica."""
        return [self.url] if self.url is not None else list(self.urls or [])

    def arguments(self) -> dict[str, Any]:
        """For ServerTeacher."""
        return {**self.model_dump(exclude={"url", "urls", "alignment"}), "urls": self.addresses}

    def __str__(self) -> str:
        return " and ".join(self.addresses)


class ByTaskSpec(Section):
    """A teacher for each value of a column of the dataset: `rlad.teacher.routing.ByTask`."""

    by_task: dict[str, LocalTeacherSpec | ServerSpec] = Limits(min_length=1)
    column: str = Limits("task", min_length=1)

    def __str__(self) -> str:
        return ", ".join(f"{each} for {task}" for task, each in self.by_task.items())


TeacherSpec = LocalTeacherSpec | SharedBaseSpec | ServerSpec | ByTaskSpec


class GenerationSpec(Section):
    """Held-out problems and how they are answered.

    puzzles: how many. samples: responses to each. max_new_tokens: None for the trainer's max_completion_length.
    """

    puzzles: int = Limits(200, ge=1)
    samples: int = Limits(1, ge=1)
    temperature: float = Limits(1.0, ge=0, allow_inf_nan=False)
    top_p: float = Limits(1.0, gt=0, le=1)
    max_new_tokens: int | None = Limits(None, ge=1)
    batch_size: int = Limits(128, ge=1)


class EvaluateSpec(GenerationSpec):
    """Evaluation before and after training.

    require_improvement: exit with status 1 when the accuracy gained is not more than chance
    (rlad.trainer.session.better).
    """

    split: Literal["test", "validation"] = "test"
    require_improvement: bool = False


class ValidateSpec(GenerationSpec):
    """Validation while training (rlad.trainer.validate).

    every: so many updates; also before the first and after the last. task: another than the recipe's, by name or with
    options. metric: mean "accuracy" over samples, "pass" at least one of the samples (pass@samples), or "reward".
    keep_best: keep the model with the best metric, and evaluate that one after training.
    """

    every: int = Limits(ge=1)
    task: str | dict[str, Any] | None = None
    split: Literal["test", "validation"] = "validation"
    metric: Literal["accuracy", "pass", "reward"] = "accuracy"
    keep_best: bool = True
    puzzles: int = Limits(100, ge=1)


S = TypeVar("S", bound=Section)


def validated(kind: type[S], data: Any, where: str) -> tuple[S | None, list[str]]:
    """`data` as a section, or None with a sentence for each thing that is wrong in it. None stays None."""
    if data is None:
        return None, []
    if not isinstance(data, Mapping):
        return None, [f"{where}: must be a mapping, not {data!r}"]
    try:
        return kind.model_validate(dict(data)), []
    except ValidationError as error:
        return None, model_problems(error, kind, {}, f"{where}.")


def expanded_teacher(value: Any) -> Any:
    """A bare URL as {url: ...}, another text as {path: ...}; anything else unchanged."""
    if not isinstance(value, str):
        return value
    return {"url" if value.startswith(("http://", "https://")) else "path": value}


def read_teacher(data: Any, where: str = "teacher") -> tuple[TeacherSpec | None, list[str]]:
    """What a teacher section says, or None with a sentence for each thing that is wrong in it. None stays None.

    No sentence repeats a password in a URL, or what stands in the place of the name of a key's variable.
    """
    data = expanded_teacher(data)
    if data is None:
        return None, []
    if secrets := _secret_problems(data, where):
        return None, secrets
    if not isinstance(data, Mapping):
        return None, [f"{where}: must be a path, a URL or a mapping, not {data!r}"]
    kinds = [key for key in ("path", "url", "urls", "by_task") if data.get(key) is not None]
    if len(kinds) > 1:
        return None, [
            f"{where}: give one of path (a model in this process), url, urls (a served one) and by_task, not "
            f"{' and '.join(kinds)}; an override replaces all of it when written {where}=..."
        ]
    if kinds == ["by_task"]:
        return _read_by_task(data, where)
    served = "url" in data or "urls" in data
    if not kinds and not served and "path" not in data:
        if data.get("adapter") is not None:
            return _teacher_of(SharedBaseSpec, data, where)
        return None, [
            f"{where}: needs path (a model in this process), url or urls (a served one), by_task, or adapter (on the "
            "student's own base)"
        ]
    return _teacher_of(ServerSpec if served and kinds != ["path"] else LocalTeacherSpec, data, where)


def _read_by_task(data: Mapping[Any, Any], where: str) -> tuple[TeacherSpec | None, list[str]]:
    teachers = data["by_task"]
    if not isinstance(teachers, Mapping) or not teachers:
        return None, [f"{where}.by_task: must map each task to a teacher, not {teachers!r}"]
    found, problems = {}, []
    for task, section in teachers.items():
        spec, wrong = read_teacher(section, f"{where}.by_task.{task}")
        if isinstance(spec, (ByTaskSpec, SharedBaseSpec)) or (spec is None and not wrong):
            wrong = [f"{where}.by_task.{task}: must be one teacher, by path or url"]
        elif spec is not None and alignment(spec) != "tokens":
            wrong = [f"{where}.by_task.{task}.alignment: must be tokens: spans is for a teacher that scores every task"]
        found[task] = spec
        problems += wrong
    return (None, problems) if problems else _teacher_of(ByTaskSpec, {**data, "by_task": found}, where)


def _teacher_of(kind: type[Any], data: Mapping[Any, Any], where: str) -> tuple[TeacherSpec | None, list[str]]:
    spec, problems = validated(kind, data, where)
    if not isinstance(spec, ServerSpec):
        return spec, problems
    if not spec.addresses:
        return None, [f"{where}: a served teacher needs url or urls"]
    if spec.alignment == "spans" and spec.tokenizer is None:
        return None, [f"{where}.tokenizer: alignment spans needs it, the hub id or path of the teacher's tokenizer"]
    from rlad.teacher.transport import checked_url

    try:
        clean = [checked_url(url) for url in spec.addresses]
    except RladError as error:
        return None, [f"{where}: {error}"]
    return (spec, []) if len(set(clean)) == len(clean) else (None, [f"{where}.urls: the same server is there twice"])


def _secret_problems(data: Any, where: str) -> list[str]:
    """Looked for first, because every other sentence repeats the value that is wrong."""
    if any("://" in text and "@" in text for text in _texts(data)):
        return [
            f"{where}: a teacher's URL holds no user and password, which would end up in recipes and logs: put the key "
            "in an environment variable and name that in api_key_env"
        ]
    variable = data.get("api_key_env") if isinstance(data, Mapping) else None
    if variable is not None and not (isinstance(variable, str) and VARIABLE.fullmatch(variable)):
        return [
            f"{where}.api_key_env: must be the name of an environment variable, in capitals, such as TEACHER_API_KEY: "
            "never the key itself"
        ]
    return []


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _texts(each)


def alignment(spec: TeacherSpec | None) -> str:
    """ "tokens" or "spans", for RLADTrainer's teacher_alignment."""
    return spec.alignment if isinstance(spec, (LocalTeacherSpec, ServerSpec)) else "tokens"


def served(spec: TeacherSpec | None) -> list[ServerSpec]:
    """The served teachers in a section."""
    each = spec.by_task.values() if isinstance(spec, ByTaskSpec) else [spec]
    return [one for one in each if isinstance(one, ServerSpec)]


def trained_by(teacher: Any) -> Any:
    """A teacher section as plain data without where and how it is reached: what a resumed run must not change."""
    if not isinstance(teacher, Mapping):
        return teacher
    if teacher.get("by_task"):
        return {**teacher, "by_task": {task: trained_by(each) for task, each in teacher["by_task"].items()}}
    if teacher.get("url") is None and teacher.get("urls") is None:
        return teacher
    reached = ("url", "urls", "api_key_env", "concurrency", "timeout", "retries")
    return {key: value for key, value in teacher.items() if key not in reached}
