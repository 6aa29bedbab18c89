"""No library's warning reaches a user: what transformers and the like deprecate is no user's to mend."""

from __future__ import annotations

import warnings
from pathlib import Path

from pipeline_helpers import write_world

from talker_rl.cli import main


def test_no_verb_passes_on_a_librarys_warning(tmp_path: Path) -> None:
    """All that Python can show, where by default it leaves out most."""
    config = write_world(tmp_path, train={
        "loss": {"type": "dpo"}, "lora": {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]},
        "args": {"max_steps": 2, "save_steps": 2, "per_device_train_batch_size": 2, "gradient_checkpointing": True},
    })  # fmt: skip
    file, run = ["-c", str(config)], ["--run-dir", str(tmp_path / "run")]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for verb in (["run", *file, *run, "-q"], ["doctor", *file], ["plan", *file], ["validate", *file],
                     ["parity", *file], ["diagnose", *run], ["report", *run], ["show", run[1]],
                     ["export", *run, "--merge", str(tmp_path / "export")], ["speaker", "list", *file]):
            assert main(verb) == 0, verb
    assert not told, "\n".join(f"{w.filename}:{w.lineno}: {w.category.__name__}: {w.message}" for w in told)
