"""`rlad evaluate`."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from rlad.errors import RladError
from rlad.evaluation.models import ModelName
from rlad.files import check_writable

if TYPE_CHECKING:
    from rlad.evaluation.generate import Backend
    from rlad.evaluation.problems import PromptFormat
    from rlad.evaluation.results import Evaluation
    from rlad.evaluation.run import Settings
    from rlad.evaluation.store import Store
    from rlad.tasks import Example, Task

# What would be ignored where nothing is generated.
GENERATION = (
    "samples temperature top_p max_new_tokens batch_size seed prompt_format append template dtype revision base "
    "backend engine url served_model api_key_env"
).split()
BATCH_SIZES = {"transformers": 64, "vllm": 2048, "server": 512}


MODEL = typer.Argument(
    help="A folder (of a model or a LoRA adapter), a hub id, embedded:student or embedded:teacher; with "
    "--responses what made them.",
    show_default=False,
)
TASK = typer.Option(help="A task's name, or YAML with options: '{name: ..., prompt: ...}'.", show_default=False)
DATA = typer.Option(metavar="FILE", help="Problems to evaluate on; otherwise the task's own.")
PEOPLE = typer.Option(help="Numbers of people, such as 2-8 or 2,4 (knights_knaves).")
PUZZLES = typer.Option(min=1, help="How many problems.", show_default="the task's")
SPLIT = typer.Option(help="test or validation.")
SAMPLES = typer.Option(min=1, help="Responses to each problem.")
PASS_AT = typer.Option(metavar="K,...", help="Show Pass@k for these k.", show_default="the samples")
TEMPERATURE = typer.Option(min=0, help="0 takes the likeliest token.")
TOP_P = typer.Option(min=0, max=1, help="Sample from this much of the probability.")
MAX_NEW_TOKENS = typer.Option(min=1, help="Longest response.")
BATCH_SIZE = typer.Option(min=1, help="Responses generated and kept at once.", show_default="64; vllm 2048; server 512")
SEED = typer.Option(help="Of the sampling; the problems stay the same.")
PROMPT_FORMAT = typer.Option(help="chat (the chat template) or raw (the text alone).")
APPEND = typer.Option(metavar="TEXT", help="What every response starts with, such as '<think>\\n'.")
TEMPLATE = typer.Option(metavar="YAML", help="Options of the chat template: '{enable_thinking: false}'.")
DTYPE = typer.Option(help="auto, float32, bfloat16 or float16.", show_default="auto; float32 on a CPU")
REVISION = typer.Option(help="Of the model on the hub.")
BASE = typer.Option(help="The base model of an adapter, if not the one it names.")
BACKEND = typer.Option(help="transformers, vllm, or server.")
ENGINE = typer.Option(metavar="YAML", help="More arguments of vllm.LLM.")
URL = typer.Option(help="http://host:port of --backend server.")
SERVED_MODEL = typer.Option(help="What the server calls it, if it serves several.")
API_KEY_ENV = typer.Option(metavar="NAME", help="Variable with the server's key.")
RECORDS = typer.Option(metavar="FOLDER", help="Keep the responses there; after a kill, go on from them.")
RESTART = typer.Option("--restart", help="Set that folder aside and begin anew.")
RESPONSES = typer.Option(metavar="FILE", help="Score these (JSONL, Parquet, records) and generate nothing.")
AGAINST = typer.Option(metavar="RUN", help="Compare in pairs with this result (JSON, or its records).")
EXPORT = typer.Option(metavar="lm-eval FILE", help="Write samples in another program's format.")
OUTPUT = typer.Option(metavar="FILE", help="Write everything as JSON; - for standard output.")


def evaluate(
    context: typer.Context,
    model: Annotated[str, MODEL] = "",
    task: Annotated[str, TASK] = "",
    data: Annotated[str | None, DATA] = None,
    people: Annotated[str | None, PEOPLE] = None,
    puzzles: Annotated[int | None, PUZZLES] = None,
    split: Annotated[str, SPLIT] = "test",
    samples: Annotated[int, SAMPLES] = 1,
    pass_at: Annotated[str | None, PASS_AT] = None,
    temperature: Annotated[float, TEMPERATURE] = 0.6,
    top_p: Annotated[float, TOP_P] = 0.95,
    max_new_tokens: Annotated[int, MAX_NEW_TOKENS] = 1024,
    batch_size: Annotated[int | None, BATCH_SIZE] = None,
    seed: Annotated[int, SEED] = 0,
    prompt_format: Annotated[str, PROMPT_FORMAT] = "chat",
    append: Annotated[str, APPEND] = "",
    template: Annotated[str, TEMPLATE] = "",
    dtype: Annotated[str | None, DTYPE] = None,
    revision: Annotated[str | None, REVISION] = None,
    base: Annotated[str | None, BASE] = None,
    backend: Annotated[str, BACKEND] = "transformers",
    engine: Annotated[str, ENGINE] = "",
    url: Annotated[str | None, URL] = None,
    served_model: Annotated[str | None, SERVED_MODEL] = None,
    api_key_env: Annotated[str | None, API_KEY_ENV] = None,
    records: Annotated[str | None, RECORDS] = None,
    restart: Annotated[bool, RESTART] = False,
    responses: Annotated[str | None, RESPONSES] = None,
    against: Annotated[str | None, AGAINST] = None,
    export: Annotated[tuple[str, str] | None, EXPORT] = None,
    output: Annotated[str | None, OUTPUT] = None,
) -> int:
    """Evaluate a model on a task: Mean@k and Pass@k with 95 % intervals, as a table and as JSON.

    Temperature 0.6 and top-p 0.95 are the paper's. docs/evaluation.md says what each number is.
    """
    from rlad.evaluation.generate import Sampling
    from rlad.evaluation.results import check_pass_at
    from rlad.evaluation.run import Settings
    from rlad.tasks import load_task

    _check_asked(task, backend, restart, records)
    _check_data_split(data, split)
    outcome = _Outcome.checked(pass_at, against, export, output)
    sampling = Sampling(temperature, top_p, max_new_tokens)
    form = _prompt_format(prompt_format, append, template)
    settings = Settings(samples, sampling, seed, batch_size or BATCH_SIZES[backend], form)
    spec = _task_spec(task, data, people)
    run = _Run(
        load_task(spec),
        (split, puzzles),
        {"model": model or responses, "command": _command()},
        {"task": spec, "split": split},
        (records, restart),
        outcome,
    )
    if responses is not None:
        _check_nothing_generates(context)
        store = run.scored(responses)
    else:
        name = _model_name(model, revision, dtype, base)
        check_pass_at(outcome.ks, samples)
        settings.sampling.check(samples, settings.batch_size)
        open_backend = _backend(backend, name, _yaml("--engine", engine), url, served_model, api_key_env)
        store = run.generated(settings, name, backend, open_backend)
    outcome.tell(store, run.about)
    return 0


@dataclasses.dataclass(frozen=True)
class _Run:
    """What is evaluated, whoever answers. problems: (split, how many). about: of the result, and `kept`: of the
    settings, both for the reader. records: (folder, whether it is set aside first). outcome: what will be told, and so
    what must be possible to tell before anything is generated or scored."""

    task: Task
    problems: tuple[str, int | None]
    about: dict[str, Any]
    kept: dict[str, Any]
    records: tuple[str | None, bool]
    outcome: _Outcome

    def generated(
        self, settings: Settings, name: ModelName, backend: str, open_backend: Callable[[], Backend]
    ) -> Store:
        """The responses of a model, scored as they are made."""
        from rlad.evaluation.run import respond

        examples = self._examples()
        self.about["revision"] = name.which_weights()
        kept = {**self.kept, "backend": backend, "dtype": name.dtype, **settings.to_json()}
        store = self._store(examples, kept)
        respond(store, settings, open_backend, _progress if sys.stderr.isatty() else None)
        return store

    def scored(self, responses: str) -> Store:
        """The responses in a file, scored."""
        from rlad.evaluation.exchange import digest, read_responses
        from rlad.evaluation.results import check_pass_at
        from rlad.evaluation.run import score

        examples = self._examples()
        found = read_responses(responses, examples)
        counts = [0] * len(examples)
        for i, _ in found:
            counts[i] += 1
        samples = min(counts, default=0)
        check_pass_at(self.outcome.ks, samples)  # to score them can take minutes
        # By their text too: records of another file of that name hold the scores of other responses.
        kept = {**self.kept, "responses": responses, "responses_sha256": digest(found), "samples": samples}
        store = self._store(examples, kept, len(found))
        done = store.done()
        places = [place for place in found if place not in done]
        for start in range(0, len(places), BATCH_SIZES["server"]):
            batch = places[start : start + BATCH_SIZES["server"]]
            score(store, batch, [found[place] for place in batch])
        return store

    def _examples(self) -> Sequence[Example]:
        """The problems. Raises RladError where the outcome cannot be told of them."""
        examples = self.task.evaluation(*self.problems)
        self.outcome.check_problems(examples)
        return examples

    def _store(self, examples: Sequence[Example], settings: dict[str, Any], responses: int | None = None) -> Store:
        from rlad.evaluation.store import Store, set_aside

        folder, restart = self.records
        if restart and folder is not None and (aside := set_aside(folder)):
            print(f"{folder} is now {aside}", file=sys.stderr)
        return Store(self.task, examples, settings, self.about, folder, responses)


@dataclasses.dataclass(frozen=True)
class _Outcome:
    """What is made of the responses. ks: of Pass@k. against: a run to compare with, by name, and `other`, the run.
    export: a file of samples. output: a file for the JSON, - for standard output, where nothing else is then said."""

    ks: Sequence[int]
    against: str | None
    other: Evaluation | None
    export: str | None
    output: str | None

    @classmethod
    def checked(
        cls, pass_at: str | None, against: str | None, export: tuple[str, str] | None, output: str | None
    ) -> _Outcome:
        """From the options. Raises RladError, before hours of work, where the result could not be told; what that
        depends on the problems for, `check_problems` looks at."""
        from rlad.evaluation.results import load_run

        if export is not None and export[0] != "lm-eval":
            raise RladError(f"--export knows the format lm-eval (--export lm-eval FILE), not {export[0]!r}")
        file = None if export is None else export[1]
        for path in (output if output != "-" else None, file):
            if path is None:
                continue
            if not path or Path(path).is_dir():
                raise RladError(f"cannot write {path}: it is a folder" if path else "--output and --export name a file")
            check_writable(Path(path).parent)
        return cls(_whole_numbers(pass_at), against, None if against is None else load_run(against), file, output)

    def check_problems(self, examples: Sequence[Example]) -> None:
        """Raises RladError where the run to compare with is of other problems."""
        from rlad.evaluation.pairs import check_same_problems
        from rlad.evaluation.problems import problem_id

        if self.other is not None:
            ids = [problem.problem for problem in self.other.problems]
            check_same_problems(ids, [problem_id(example) for example in examples])

    def tell(self, store: Store, about: Mapping[str, Any]) -> None:
        """The tables, on standard error where the JSON goes to standard output; the JSON; the samples.

        The comparison is last: where it fails the responses are not lost, and the JSON is there without it.
        """
        from rlad.evaluation.exchange import export_lm_eval
        from rlad.evaluation.results import write_json

        said, evaluation = sys.stderr if self.output == "-" else sys.stdout, store.evaluation()
        evaluation = dataclasses.replace(evaluation, settings={**about, **evaluation.settings})
        if self.ks:
            evaluation = evaluation.with_pass_at(self.ks)
        content, file = evaluation.to_json(), None if self.output == "-" else self.output
        print(evaluation.table(), file=said)
        try:
            if file is not None:
                write_json(file, content)
                print(f"written to {file}")
            if self.export is not None:
                export_lm_eval(self.export, store.rows())
                print(f"samples for lm-eval in {self.export}", file=said)
            if self.other is not None:
                content["against"] = self._compared(evaluation, self.other, said)
                if file is not None:
                    write_json(file, content)  # once more, with the comparison
        finally:
            if self.output == "-":
                print(json.dumps(content))

    def _compared(self, evaluation: Evaluation, other: Evaluation, said: TextIO) -> dict[str, Any]:
        from rlad.evaluation.pairs import compare, comparison_table, differing_settings

        rows, differing = compare(other, evaluation), differing_settings(other, evaluation)
        print(f"\nagainst {self.against}, in pairs:", file=said)
        print(comparison_table(evaluation.difficulty_name, rows, "other"), file=said)
        if differing:
            print(f"warning: the two were not made alike: {'; '.join(differing)}", file=sys.stderr)
        return {"run": self.against, "settings": other.settings, "differing": differing, "rows": rows}


def _backend(
    backend: str, name: ModelName, engine: dict[str, Any], url: str | None, served: str | None, key: str | None
) -> Callable[[], Backend]:
    """A function that makes the backend: it is called when it is known that there is something to generate."""
    if backend != "server" and (url or served or key):
        raise RladError("--url, --served-model and --api-key-env are for --backend server")
    if backend != "vllm" and engine:
        raise RladError("--engine is for --backend vllm")
    if backend == "server" and (name.dtype or name.base):
        raise RladError("--dtype and --base are the server's affair: leave them out with --backend server")
    if backend == "server" and url is None:
        raise RladError("--backend server needs --url http://host:port; MODEL names the tokenizer")

    def open_backend() -> Backend:
        if backend == "transformers":
            from transformers.utils import logging

            from rlad.evaluation.generate import TransformersBackend

            logging.disable_progress_bar()
            return TransformersBackend(*name.load())
        from rlad.evaluation.backends import ServerBackend, VLLMBackend

        if backend == "vllm":
            return VLLMBackend(name, engine)
        return ServerBackend(url or "", name.tokenizer(), served, api_key_env=key)

    return open_backend


def _model_name(model: str, revision: str | None, dtype: str | None, base: str | None) -> ModelName:
    if not model:
        raise RladError("say which model to evaluate, or score responses made elsewhere with --responses")
    return ModelName(model, revision, dtype, base)


def _check_nothing_generates(context: typer.Context) -> None:
    """Raises RladError for options beside --responses that would be ignored."""
    given = [name for name in GENERATION if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"]
    if given:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise RladError(f"with --responses nothing is generated, so {options} would do nothing: leave it out")


def _check_asked(task: str, backend: str, restart: bool, records: str | None) -> None:
    if not task:
        raise RladError("say what to evaluate on: --task knights_knaves, or another task")
    if backend not in BATCH_SIZES:
        raise RladError(f"--backend must be one of {', '.join(BATCH_SIZES)}, not {backend!r}")
    if restart and records is None:
        raise RladError("--restart begins --records anew: say which folder")


def _check_data_split(data: str | None, split: str) -> None:
    if data is not None and split != "test":
        raise RladError("--data is what --split test is of: leave --split out")


def _prompt_format(kind: str, append: str, template: str) -> PromptFormat:
    """From the options. append: with \\n for a line break, as a shell has it."""
    from rlad.evaluation.problems import PromptFormat

    return PromptFormat(kind, append.replace("\\n", "\n"), _yaml("--template", template))


def _whole_numbers(text: str | None) -> list[int]:
    try:
        return [] if text is None else [int(each) for each in text.split(",")]
    except ValueError:
        raise RladError(f"--pass-at must be whole numbers, such as 1,8,32, not {text!r}") from None


def _yaml(option: str, text: str) -> dict[str, Any]:
    """A mapping from the command line. Raises RladError where it is none."""
    import yaml

    try:
        loaded = yaml.safe_load(text) or {}
    except (yaml.YAMLError, RecursionError) as error:
        raise RladError(f"{option} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(loaded, Mapping):
        raise RladError(f"{option} must be a mapping of options, not {text!r}")
    return dict(loaded)


def _command() -> str:
    return shlex.join(["rlad", *sys.argv[1:]])


def _task_spec(task: str, data: str | None, people: str | None) -> dict[str, Any]:
    """The task and its options from the command line. Raises RladError where `task` looks like YAML and is none."""
    spec: dict[str, Any] = _yaml("--task", task) if task.lstrip().startswith("{") else {"name": task}
    if data is not None:
        spec["evaluation_prompts" if "prompts" in spec else "evaluation_data"] = data
    if people is not None:
        spec["people"] = people
    return spec


def _progress(done: int, total: int) -> None:
    print(f"\r{done}/{total} responses", end="\n" if done == total else "", file=sys.stderr, flush=True)
