"""Named errors. Each message says what is wrong, where, and what to do about it."""

from __future__ import annotations

import errno


class TalkerRLError(Exception):
    """A mistake or a condition the user can act on; the CLI prints it as one message and exits non-zero.

    Args:
        what: what is wrong, one sentence.
        where: the file, key or record concerned.
        fix: what the user should do.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what, self.where, self.fix = what, where, fix
        parts = [what]
        if where:
            parts.append(f"  where: {where}")
        if fix:
            parts.append(f"  fix:   {fix}")
        super().__init__("\n".join(parts))


class ConfigError(TalkerRLError):
    """An unknown key, a wrong type or values that contradict each other."""

    exit_code = 2


class CheckpointError(TalkerRLError):
    """A model folder that is missing, incomplete or of another geometry."""


class PromptError(TalkerRLError):
    """A prompt (or prompt file) that cannot be spoken."""


class DataError(TalkerRLError):
    """A shard or record that cannot be read (truncated, wrong schema)."""


class StageError(TalkerRLError):
    """A stage that cannot go on: inputs missing, config changed, too many failures."""


class TrainingError(TalkerRLError):
    """Training that diverged (NaN loss) or cannot start."""


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, or one that it came from, says that the disk is full."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left on device" in str(seen):  # safetensors and torch raise their own kinds
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def disk_full(path: object = None) -> StageError:
    """The one message for a full disk."""
    return StageError("The disk is full", where=None if path is None else str(path),
                      fix="free some space and start the same command again: what is finished is kept")


def told(error: BaseException) -> str:
    """What another library's error says, on one line; its type where it says nothing."""
    text = " ".join(str(error).split())
    return (text if len(text) <= 300 else f"{text[:300]} ...") or type(error).__name__
