"""The model that is evaluated: where it is, which weights it has, and how it is loaded."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlad.errors import RladError
from rlad.models import load_tokenizer, resolve

DTYPES = ("auto", "float32", "bfloat16", "float16")
ADAPTER_CONFIG = "adapter_config.json"
_SAMPLE = 1 << 20  # bytes at the beginning and the end of a file of weights


@dataclass(frozen=True)
class ModelName:
    """A folder, a hub id or embedded:NAME; of a model, or of a LoRA adapter on `base`.

    base: another base model than the one that the adapter was trained on says. dtype: None for what the weights are in
    on a GPU, and float32 without one.
    """

    name: str
    revision: str | None = None
    dtype: str | None = None
    base: str | None = None

    def __post_init__(self) -> None:
        if self.dtype is not None and self.dtype not in DTYPES:
            raise RladError(f"dtype must be one of {', '.join(DTYPES)}, not {self.dtype!r}")
        # Not a hub id: say so plainly.
        if self.name.startswith((".", "/", "~")) and not Path(self.path).is_dir():
            raise RladError(f"there is no model folder {self.name}")
        if self.base is not None and not self.is_adapter:
            raise RladError(f"{self.name} is no adapter folder (it has no {ADAPTER_CONFIG}), so --base has no use")

    @property
    def path(self) -> str:
        """What from_pretrained takes."""
        return str(Path(self.name).expanduser()) if self.name.startswith("~") else resolve(self.name)

    @property
    def is_adapter(self) -> bool:
        """Whether it is a folder that PEFT wrote. (An adapter on the hub has to be downloaded first.)"""
        return (Path(self.path) / ADAPTER_CONFIG).is_file()

    @property
    def base_path(self) -> str:
        """The whole model: itself, or what its adapter is on."""
        if not self.is_adapter:
            return self.path
        if self.base is not None:
            return resolve(self.base)
        try:
            named = json.loads((Path(self.path) / ADAPTER_CONFIG).read_text(encoding="utf-8"))[
                "base_model_name_or_path"
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise RladError(f"{self.path}/{ADAPTER_CONFIG} names no base model ({error}): say it with --base") from None
        if str(named).startswith("/") and not Path(named).is_dir():
            raise RladError(f"the adapter {self.name} is on {named}, which is not there: name its base with --base")
        return str(named)

    def which_weights(self) -> str | None:
        """What tells these weights from others of the same name: the hub's commit, or a hash of a folder's weights.

        The hash is of the size, the first and the last MiB of each file of weights. None where the hub is not reached.
        """
        folder = Path(self.path)
        if folder.is_dir():
            return "sha256:" + _fingerprint(folder)
        from transformers import AutoConfig

        try:
            commit = getattr(AutoConfig.from_pretrained(self.path, revision=self.revision), "_commit_hash", None)
        except (OSError, ValueError) as error:
            raise RladError(f"cannot load the model {self.name!r}: {' '.join(str(error).split())}") from None
        return commit or self.revision

    def tokenizer(self) -> Any:
        """Its tokenizer: the adapter's own where it has one."""
        own = not self.is_adapter or (Path(self.path) / "tokenizer_config.json").is_file()
        return load_tokenizer(self.path if own else self.base_path, "the model", revision=self.revision)

    def load(self) -> tuple[Any, Any]:
        """(model, tokenizer), on the GPU where there is one. Safetensors only. Raises RladError where it cannot be."""
        import torch
        from transformers import AutoModelForCausalLM

        gpu = torch.cuda.is_available()
        dtype = self.dtype or ("auto" if gpu else "float32")
        tokenizer = self.tokenizer()
        try:
            model: Any = AutoModelForCausalLM.from_pretrained(
                self.base_path,
                dtype=dtype if dtype == "auto" else getattr(torch, dtype),
                revision=None if self.is_adapter else self.revision,
                use_safetensors=True,
            )
            if self.is_adapter:
                from peft import PeftModel

                from rlad.teacher.local import safe_adapter

                # The base model itself comes back: its layers carry the adapter now.
                model = PeftModel.from_pretrained(model, safe_adapter(self.path)).get_base_model()
        except (OSError, ValueError, ImportError, RuntimeError) as error:
            raise RladError(f"cannot load the model {self.name!r}: {' '.join(str(error).split())}") from None
        return model.to("cuda" if gpu else "cpu").eval(), tokenizer


def load_model(name: str) -> tuple[Any, Any]:
    """(model, tokenizer) for a folder, a hub id or embedded:NAME; see ModelName."""
    return ModelName(name).load()


def _fingerprint(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*config.json"), *folder.glob("tokenizer.json")]):
        size = path.stat().st_size
        digest.update(f"{path.name} {size} ".encode())
        with path.open("rb") as file:
            digest.update(file.read(_SAMPLE))
            if size > _SAMPLE:
                file.seek(max(_SAMPLE, size - _SAMPLE))
                digest.update(file.read())
    return digest.hexdigest()[:16]
