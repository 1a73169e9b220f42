"""Checkpoints of a run: one file, replaced whole, and read with care."""

import os
from pathlib import Path

import torch

FORMAT = "seqkern next_word 1"


class CheckpointError(Exception):
    """A checkpoint that cannot be used, and why, in one sentence."""


def save(path: Path, setting: dict, runs: dict) -> None:
    """Write beside `path`, then rename: an interrupted write leaves the old file as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("wb") as file:
            torch.save({"format": FORMAT, "setting": setting, "runs": runs}, file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def load(path: Path, setting: dict) -> dict:
    """The runs in a checkpoint made with the same setting; else a CheckpointError."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise CheckpointError(f"cannot read checkpoint {path}: {error.strerror}") from None
    try:
        with file:
            content = torch.load(file, weights_only=True, map_location="cpu")
    except Exception as error:  # noqa: BLE001 torch.load raises many kinds for a file that is none
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise CheckpointError(f"{path} is damaged or no checkpoint ({reason[:100]})") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path} is a checkpoint, but of another program than this")
    theirs, runs = content.get("setting"), content.get("runs")
    if not isinstance(theirs, dict) or not isinstance(runs, dict):
        raise CheckpointError(f"{path} is damaged or no checkpoint (parts of it are missing)")
    differing = [
        f"{key} {theirs.get(key)} (now {value})"
        for key, value in setting.items()
        if theirs.get(key) != value
    ]
    if differing:
        raise CheckpointError(f"{path} was made with another setting: {', '.join(differing)}")
    return runs
