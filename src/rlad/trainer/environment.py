"""What is kept beside numbers: versions, machine, and the commit of the source tree."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any


def environment() -> dict[str, Any]:
    """Versions and machine, to be kept beside numbers."""
    import torch

    packages = ("rlad", "torch", "transformers", "trl", "accelerate", "datasets")
    return {
        "versions": {name: version(name) for name in packages},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu",
        "commit": source_commit(),
    }


def source_commit() -> str | None:
    """The commit of the source tree that rlad runs from, with a + where files differ from it; None outside of git."""
    folder = Path(__file__).parent

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        if not git("ls-files", "--", Path(__file__).name):  # installed into somebody else's repository
            return None
        return git("rev-parse", "HEAD") + (
            "+" if git("status", "--porcelain", "-uno", "--", str(folder.parent)) else ""
        )
    except (OSError, subprocess.SubprocessError):
        return None
