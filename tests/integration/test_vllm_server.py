"""The served teacher against a real vLLM, started by `rlad teacher serve`.

RLAD_TEST_VLLM names a virtual environment with vllm, or the python in it; without it these tests are skipped.
docs/teacher.md says how to make one that runs on a CPU.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from rlad.errors import RladError
from rlad.models import resolve
from rlad.tasks import load_task
from rlad.teacher.local import LocalTeacher
from rlad.teacher.server import ServerTeacher, look
from rlad.trainer.config import Recipe
from rlad.trainer.run import train

pytestmark = [pytest.mark.server, pytest.mark.slow]

READY_SECONDS = 240.0
# float32 and little memory: what a CPU without AVX-512 and a test machine's GPU can both do.
VLLM_OPTIONS = ["--enforce-eager", "--kv-cache-memory-bytes", "1073741824"]


@dataclass
class Running:
    url: str
    process: subprocess.Popen[bytes]

    def kill(self) -> None:
        """With its engine, as when a machine goes away. It was started in a process group of its own."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    named = os.environ.get("RLAD_TEST_VLLM")
    if not named:
        pytest.skip("RLAD_TEST_VLLM is not set")
    place = Path(named).expanduser()
    programs = place.parent if place.is_file() else place / "bin"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = tmp_path_factory.mktemp("vllm") / "log.txt"
    command = [sys.executable, "-c", "import sys; from rlad.cli.main import main; sys.exit(main())", "teacher", "serve"]
    command += ["embedded:teacher", "--port", str(port), "--dtype", "float32", "--gpu-memory-utilization", "0.1"]
    environment = {
        **os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1",
    }  # fmt: skip
    with path.open("wb") as log:
        process = subprocess.Popen(
            [*command, "--", *VLLM_OPTIONS], env=environment, stdout=log, stderr=log, start_new_session=True
        )
    running = Running(f"http://127.0.0.1:{port}", process)
    try:
        _wait_until_it_answers(running, path)
        yield running
    finally:
        if process.poll() is None:
            running.kill()


def _wait_until_it_answers(running: Running, log: Path) -> None:
    until = time.monotonic() + READY_SECONDS
    while True:
        try:
            assert look(running.url) == ["embedded:teacher"]
            return
        except RladError as error:
            if running.process.poll() is not None or time.monotonic() > until:
                pytest.fail(f"vLLM did not start: {error}\n{log.read_text()[-4000:]}")
            time.sleep(0.5)


def sequences() -> tuple[list[list[int]], list[list[int]]]:
    """Eight puzzles as prompts, and random responses of 0 to 199 tokens."""
    tokenizer = AutoTokenizer.from_pretrained(resolve("embedded:student"))
    examples = load_task({"name": "knights_knaves"}).evaluation("test", 8)
    prompts = [
        tokenizer.apply_chat_template(each["prompt"], add_generation_prompt=True, return_dict=False)
        for each in examples
    ]
    draw = random.Random(0)
    lengths = [0, 1, *(draw.randrange(2, 200) for _ in prompts[2:])]
    return prompts, [[draw.randrange(len(tokenizer)) for _ in range(length)] for length in lengths]


def test_its_scores_are_those_of_the_same_model_in_this_process(vllm: Running) -> None:
    prompts, responses = sequences()
    local = LocalTeacher.load("embedded:teacher", dtype="float32").score(prompts, responses)
    teacher = ServerTeacher(vllm.url)
    teacher.prepare(AutoTokenizer.from_pretrained(resolve("embedded:student")))
    served = teacher.score(prompts, responses)
    assert [row.shape for row in served] == [row.shape for row in local]
    largest = max(float((a - b).abs().max()) for a, b in zip(served, local, strict=True) if len(a))
    print(f"{sum(map(len, responses))} tokens: largest difference {largest:.1e} nats")
    assert largest < 1e-4
    assert max(float(row.abs().max()) for row in local if len(row)) > 5  # they are far from 0, so this says something
    backwards = ServerTeacher(vllm.url, concurrency=1).score(prompts[::-1], responses[::-1])
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(backwards[::-1], served, strict=True))


def test_what_it_refuses_is_an_error_that_says_so(vllm: Running) -> None:
    teacher = ServerTeacher(vllm.url)
    vocabulary = LocalTeacher.load("embedded:teacher").vocabulary
    assert teacher.score([[1]], [[vocabulary - 1]])[0].isfinite().all()
    with pytest.raises(RladError, match=r"refused sequence 0 of 1 .*out of vocabulary"):
        teacher.score([[1]], [[vocabulary]])
    assert len(teacher.score([[1] * 2040], [[1] * 7])[0]) == 7
    with pytest.raises(RladError, match=r"refused sequence 0 of 1 \(2048 tokens\): HTTP 400: .* --max-model-len"):
        teacher.score([[1] * 2040], [[1] * 8])
    with pytest.raises(RladError, match="does not serve 'other': it serves embedded:teacher"):
        ServerTeacher(vllm.url, model="other").score([[1]], [[2]])


def test_the_quickstart_trains_with_it(vllm: Running, tmp_path: Path) -> None:
    small = ["trainer.max_steps=2", "trainer.save_steps=2", "evaluate=null", "trainer.max_completion_length=32"]
    made = Recipe.resolve("quickstart", [f"teacher={vllm.url}", *small, f"output={tmp_path / 'run'}"])
    assert train(made, emit=lambda line: None) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert all(row["rlad/broken_teacher"] == 0 and abs(row["rlad/student_minus_teacher"]) < 5 for row in rows)


def test_when_it_is_killed_the_error_says_what_to_do(vllm: Running) -> None:
    prompts, responses = sequences()
    teacher = ServerTeacher(vllm.url, retries=1, backoff=0.01)
    teacher.score(prompts, responses)
    vllm.kill()
    with pytest.raises(RladError, match=rf"was not scored: the teacher at {vllm.url} failed: .* --resume"):
        teacher.score(prompts, responses)
