"""`rlad teacher serve`: vLLM with the options that a teacher needs."""

from __future__ import annotations

import os
import shlex
import shutil
from typing import Annotated

import typer

from rlad.errors import RladError

teacher = typer.Typer(name="teacher", rich_markup_mode=None, add_completion=False)

MISSING = (
    "vllm is not installed here: the command above is for where it is, or install it with pip install 'trl[vllm]' "
    "(a GPU; in an environment of its own where the versions do not go together)"
)


@teacher.callback()
def _group() -> None:
    """Serve a teacher to training runs."""


@teacher.command()
def serve(
    model: Annotated[
        str, typer.Argument(help="A hub id, a folder, or embedded:teacher.", metavar="MODEL", show_default=False)
    ],
    vllm_options: Annotated[
        list[str] | None,
        typer.Argument(metavar="VLLM_OPTION", help="After --: handed to vllm serve as they are.", show_default=False),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    dtype: Annotated[
        str, typer.Option(help="auto (the model's own), bfloat16 (off by hundredths of a nat) or float32.")
    ] = "auto",
    max_logprobs: Annotated[int, typer.Option(min=0, help="Most alternatives a client may ask for; we ask for 0.")] = 1,
    max_model_len: Annotated[
        int | None, typer.Option(min=2, help="Longest prompt + response + 1.", show_default="the model's")
    ] = None,
    gpu_memory_utilization: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of the GPU to take.", show_default="vLLM's")
    ] = None,
    max_num_batched_tokens: Annotated[
        int, typer.Option(min=1, help="Prompt tokens at once: the logits of all of them are in memory, in float32.")
    ] = 2048,
    tensor_parallel_size: Annotated[int, typer.Option(min=1, help="GPUs that share the model.")] = 1,
    api_key_env: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The environment variable with the key that clients must send."),
    ] = None,
    print_only: Annotated[bool, typer.Option("--print", help="Print the command and do not run it.")] = False,
) -> int:
    """Serve MODEL with vLLM as a teacher, for `teacher: http://HOST:PORT` in a recipe."""
    from rlad.models import resolve

    command = ["vllm", "serve", resolve(model)]
    options = {
        "--served-model-name": model if model.startswith("embedded:") else None,
        "--host": host,
        "--port": port,
        "--dtype": dtype,
        "--max-logprobs": max_logprobs,
        "--max-model-len": max_model_len,
        "--max-num-batched-tokens": max_num_batched_tokens,
        "--gpu-memory-utilization": gpu_memory_utilization,
        "--tensor-parallel-size": tensor_parallel_size,
    }
    for name, value in options.items():
        command += [] if value is None else [name, str(value)]
    command.append("--no-enable-prefix-caching")  # with it, prompt_logprobs depend on the order of the requests
    command += vllm_options or []

    key = f'VLLM_API_KEY="${api_key_env}" ' if api_key_env else ""  # its name: a key on a command line is seen by all
    if print_only or (found := shutil.which("vllm")) is None:
        print(key + shlex.join(command))
        if print_only:
            return 0
        raise RladError(MISSING)
    os.execve(found, command, _environment(api_key_env))


def _environment(api_key_env: str | None) -> dict[str, str]:
    """Ours, with the key where vLLM looks for it. Raises RladError where the variable that should hold it does not."""
    environment = dict(os.environ)
    if api_key_env is not None:
        if not environment.get(api_key_env):
            raise RladError(f"the environment variable {api_key_env} is not set: export it, or leave --api-key-env out")
        environment["VLLM_API_KEY"] = environment[api_key_env]
    return environment
