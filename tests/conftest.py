"""What holds for every test: one torch thread, no network, no telemetry; and where data outside the repository is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before anything imports torch: its threads spin when a core is busy elsewhere.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder that RLAD_TEST_DATA names (with kk/, math/ and grading/); the test is skipped where it is not set."""
    folder = os.environ.get("RLAD_TEST_DATA")
    if not folder:
        pytest.skip("RLAD_TEST_DATA is not set")
    return Path(folder)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return Path(__file__).parent.parent
