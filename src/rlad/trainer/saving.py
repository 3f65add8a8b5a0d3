"""What a run leaves on the disk: checkpoints to go on from, and models to use."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlad.files import whole_file

STATE_FILE = "rlad_state.json"  # written last into a checkpoint: a checkpoint without it is not whole


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint: one that a kill cut short lacks the file that is written last."""
    whole = [path for path in folder.glob("checkpoint-*") if (path / STATE_FILE).is_file()]
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def mark_whole(folder: Path, state: Mapping[str, Any]) -> None:
    """Write the file that makes a checkpoint whole, in full or not at all."""
    with whole_file(folder / STATE_FILE) as file:
        file.write((json.dumps(state) + "\n").encode())


class NothingLeft:
    """Mixed into a transformers.Trainer: a checkpoint of the last update leaves nothing to train, and neither does a
    budget that is spent already.

    transformers looks for the end after an update alone: a run that was killed after its last one (while it was
    evaluated, say) would make one update too many when it goes on.
    """

    state: Any
    control: Any

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.control.should_training_stop or self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)  # type: ignore[misc]


def save_model(trainer: Any, folder: Path, notes: Mapping[str, Mapping[str, Any]] | None = None) -> None:
    """The model, its tokenizer and `notes` (file name to JSON); a folder of that name is whole or not there.

    Called in every process, since a sharded model is gathered from all of them.
    """
    temporary = folder.with_name(f".{folder.name}")
    with _whole_state(trainer):
        trainer.save_model(str(temporary))
    if trainer.is_world_process_zero():
        _finish(temporary, folder, notes or {})
    trainer.accelerator.wait_for_everyone()  # a process that goes on may load it


@contextmanager
def _whole_state(trainer: Any) -> Iterator[None]:
    """While it lasts FSDP gathers a model that it saves: of a sharded state transformers writes no model at all."""
    if not trainer.is_fsdp_enabled:
        yield
        return
    from torch.distributed.fsdp import StateDictType

    plugin = trainer.accelerator.state.fsdp_plugin
    before, plugin.state_dict_type = plugin.state_dict_type, StateDictType.FULL_STATE_DICT
    try:
        yield
    finally:
        plugin.state_dict_type = before


def _finish(temporary: Path, folder: Path, notes: Mapping[str, Mapping[str, Any]]) -> None:
    """Move what was saved to its place, with the notes and without what does not belong there."""
    from rlad.teacher.local import ADAPTER

    old = folder.with_name(f".{folder.name}.old")
    (temporary / "training_args.bin").unlink(missing_ok=True)  # a pickle; the recipe says it all
    shutil.rmtree(temporary / ADAPTER, ignore_errors=True)  # PEFT saves every adapter, the teacher's too
    for name, content in notes.items():
        (temporary / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)  # renamed and not removed first: whatever happens, a whole one is there
    temporary.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
