"""A training as a task: one JSON file, run in this process or in one process a device.

    python -m talker_rl.train task.json                                             # in one process
    torchrun --standalone --nproc-per-node 2 -m talker_rl.train task.json           # in two, which share every batch

Whoever launches holds the run's lock and reads what came of it, beside the task: ``made.json`` by the main process, or
an ``error-<rank>.json``. A launched process ends with the one that launched it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from pydantic import BaseModel, ValidationError

from talker_rl.base import errors
from talker_rl.base.disk import read_json, write_json
from talker_rl.base.errors import ConfigError, StageError, TalkerRLError, TrainingError
from talker_rl.base.lazy import picked
from talker_rl.base.processes import one_thread, visible_devices

TASK, MADE, ERROR = "task.json", "made.json", "error-{}.json"
_LAUNCHED = "TALKER_RL_LAUNCHED"
"""Set in processes whose standard input ends when the one that launched them does."""


@dataclass
class Task:
    """One training as plain data: it means the same wherever it runs. Folders are paths."""

    output: str
    """The variant's folder, which the task's file lies in."""
    model: dict[str, Any]
    """``ModelConfig``."""
    train: dict[str, Any]
    """``TrainConfig``."""
    data: str
    """Shards of pairs, or of completions where ``train.data`` says so."""
    conditioning: str
    reference_cache: str
    start: str | None
    """Adapter that training begins with."""
    reference: str
    """As ``train_variant`` takes it."""
    held_out_share: float
    one_thread: bool
    """Sums in an order that does not depend on where the training runs."""
    progress: bool
    watch: dict[str, Any] | None = None
    """``function`` ("module:name") and ``arguments`` of a context manager that gives trainer callbacks; where the task
    is launched, the main process enters it."""
    judge: dict[str, Any] | None = None
    """Likewise of one that gives a judge of samples (:class:`talker_rl.stages.online.PoolJudge`), for data: online."""
    live_key: str = ""
    """What its samples and scores depend on beside the policy."""

    def write(self) -> Path:
        """Into its folder; what an earlier start left beside it is taken away."""
        folder = Path(self.output)
        # what other machines have finished stays
        elsewhere = self.train.get("engine", {}).get("nodes", 1) > 1 and (folder / "result.json").is_file()
        for file in () if elsewhere else (folder / MADE, *folder.glob(ERROR.format("*"))):
            file.unlink(missing_ok=True)
        write_json(folder / TASK, asdict(self))
        return folder / TASK

    @classmethod
    def read(cls, file: Path) -> Task:
        """What :meth:`write` wrote.

        Raises:
            ConfigError: it is no task, or a section of it is wrong.
            DataError: the file is missing or damaged.
        """
        from talker_rl.speech.config import ModelConfig
        from talker_rl.train.config import TrainConfig

        try:
            task = cls(**read_json(file))
        except TypeError as error:
            raise ConfigError(f"This is no task of a training: {error}", where=str(file),
                              fix="give the task.json of a training's folder") from None
        sections: dict[str, type[BaseModel]] = {"model": ModelConfig, "train": TrainConfig}
        for name, kind in sections.items():
            try:
                kind.model_validate(getattr(task, name))
            except ValidationError as error:
                told = "; ".join(f"`{'.'.join(map(str, (name, *item['loc'])))}`: "
                                 + item["msg"].removeprefix("Value error, ") for item in error.errors())
                raise ConfigError(f"The task is wrong: {told}", where=str(file),
                                  fix="mend the file, or let talker-rl train write it again") from None
        return task


def run_task(task: Task, callbacks: Sequence[Any] = ()) -> dict[str, Any]:
    """Train, as one process of however many; returns ``pairs``, ``held_out`` and ``steps``.

    Args:
        callbacks: further trainer callbacks.
    """
    from talker_rl.data.pairs import is_held_out
    from talker_rl.records.pair import Completion, Pair
    from talker_rl.speech.cache import ConditioningCache
    from talker_rl.speech.config import ModelConfig
    from talker_rl.speech.registry import load
    from talker_rl.store.shards import ShardFolder
    from talker_rl.train.config import TrainConfig
    from talker_rl.train.run import train_variant

    cfg, model = TrainConfig.model_validate(task.train), ModelConfig.model_validate(task.model)
    if cfg.data == "online":
        return _run_online(task, cfg, model, callbacks)
    folder = ShardFolder(Path(task.data))
    records: Sequence[Any] = folder.records(Pair) if cfg.data is None else folder.records(Completion)
    prompts = folder.column("prompt_id")
    places: dict[bool, list[int]] = {True: [], False: []}
    for i, prompt in enumerate(prompts):
        places[is_held_out(prompt, task.held_out_share)].append(i)
    fitted, held_out = picked(records, places[False]), picked(records, places[True])
    with one_thread() if task.one_thread else contextlib.nullcontext():
        generator = load(model, parts=("talker",))  # its own copy: training wraps and changes it
        conditionings = ConditioningCache(Path(task.conditioning), strict=True).mapping(prompts)
        result = train_variant(
            generator, fitted, conditionings, cfg, task.output, eval_pairs=held_out or None, start_adapter=task.start,
            reference=task.reference, progress=task.progress, reference_cache=task.reference_cache,
            extra_callbacks=callbacks,
        )
    return {"pairs": len(fitted), "held_out": len(held_out), "steps": result["steps"]}


def _run_online(task: Task, cfg: Any, model: Any, callbacks: Sequence[Any]) -> dict[str, Any]:
    """Likewise on what the policy samples; ``pairs`` are its decodes."""
    from talker_rl.losses.config import parse_loss, parts_of
    from talker_rl.speech.cache import ConditioningCache
    from talker_rl.speech.registry import load
    from talker_rl.train.groups import Pauses
    from talker_rl.train.live import Live
    from talker_rl.train.run import train_online

    assert cfg.online is not None
    with _watching(task.judge) as judge, one_thread() if task.one_thread else contextlib.nullcontext():
        run = judge.config
        held_out = judge.held_out if cfg.online.held_out else []
        conditionings = ConditioningCache(Path(task.conditioning), strict=True).load(
            [p.prompt_id for p in [*judge.prompts, *held_out]])
        pauses = run.reward.pauses
        weighted = any(getattr(part, "token_weights", None) for part in parts_of(parse_loss(cfg.loss)))
        live = Live(cfg.online, judge.prompts, conditionings, Path(task.output) / "online", task.live_key, judge,
                    sampling=cfg.online.drawn(run.rollouts.sampling.max_new_tokens), batch_size=run.rollouts.batch_size,
                    seed=int(cfg.args.get("seed", 42)), learned=cfg.learned, held_out=held_out, classes=weighted,
                    speaking=run.rollouts.sampling,
                    pauses=Pauses(pauses.hit_seconds, pauses.spurious_seconds, pauses.time_tolerance),
                    max_failure_rate=run.reward.max_failure_rate)
        result = train_online(
            load(model, parts=("talker",)), live, cfg, task.output, facts={"live": task.live_key},
            start_adapter=task.start, reference=task.reference, progress=task.progress, extra_callbacks=callbacks)
    return {"pairs": result["data"]["decodes"], "held_out": 0, "steps": result["steps"]}


def launch(file: Path, devices: Sequence[str]) -> dict[str, Any]:
    """Run a task in one process a device, under torchrun; what :func:`run_task` returns.

    Raises:
        TalkerRLError: what a process raised, once; or that one died.
    """
    # the modules that this process finds, a loss of the user's own among them
    env = {**os.environ, _LAUNCHED: "1", "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    env.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // len(devices))))
    env |= visible_devices(devices)
    command = [sys.executable, "-m", "talker_rl.train", str(file), "--spread", str(len(devices))]
    process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=2)
    try:
        code = process.wait()
    finally:  # Ctrl-C, say: the launcher ends its processes, and if it does not, they see their input end
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=20)
        process.stdin.close()  # type: ignore[union-attr]
        process.kill()
    if code == 0 and (file.parent / MADE).exists():
        made: dict[str, Any] = read_json(file.parent / MADE)
        return made
    _tell(file.parent, code)


def command(file: Path, processes: int, nodes: int = 1) -> str:
    """What runs a task in so many processes on each of so many machines, whoever starts it; several machines find each
    other by ``$HEAD``, the name of any of them."""
    meet = (f'--nnodes={nodes} --rdzv-backend=c10d --rdzv-endpoint="$HEAD:29500" --rdzv-id="${{SLURM_JOB_ID:-talker}}'
            '.${SLURM_RESTART_COUNT:-0}"' if nodes > 1 else "--standalone")
    return (f"torchrun {meet} --nproc-per-node={processes} --max-restarts=0 -m talker_rl.train "
            f"{shlex.quote(str(file))}")


def made_elsewhere(task: Task, nodes: int, processes: int) -> dict[str, Any]:
    """What came of a task that several machines run.

    Raises:
        StageError: nothing yet; the command that they are to be started with.
    """
    folder = Path(task.output)
    if not (folder / MADE).exists():
        raise StageError(f"This training takes {nodes} machines, and it is not finished", where=str(folder),
                         fix="start this on each of them, then the same command again:\n    HEAD=<one of them> "
                         + command(folder / TASK, processes, nodes))
    made: dict[str, Any] = read_json(folder / MADE)
    return made


def main(arguments: Sequence[str]) -> int:
    """``task.json [--spread N]``: run it as one process; or, with N, start so many of those."""
    asked = _parse(arguments)
    file = asked.task
    if asked.spread:
        return _torchrun(["--standalone", "--nproc-per-node", str(asked.spread), "-m", "talker_rl.train", file])
    rank = int(os.environ.get("RANK", "0"))
    if os.environ.get(_LAUNCHED):
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C is the launcher's to tell, and this process's to obey
        threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        task = Task.read(Path(file))
        with _watching(None if rank else task.watch) as callbacks:
            _prepare(rank)
            made = run_task(task, callbacks)
    except TalkerRLError as error:
        return _failed(Path(file), rank, {"type": type(error).__name__, "what": error.what, "where": error.where,
                                          "fix": error.fix}, str(error))
    except Exception as error:
        trace = traceback.format_exc()
        return _failed(Path(file), rank, {"what": f"{type(error).__name__}: {error}", "traceback": trace}, trace)
    if rank == 0:
        write_json(Path(file).parent / MADE, made)
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m talker_rl.train", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Run one training from its file. It goes on from the newest checkpoint; what came of it lies "
        "beside the\nfile: made.json, or error-<rank>.json. `talker-rl train` writes such files and runs them; do it "
        "by hand only\nwhile nothing else works in the run.",
        epilog="examples:\n  python -m talker_rl.train runs/demo/round1/train/default/task.json\n"
        "  torchrun --standalone --nproc-per-node 2 -m talker_rl.train runs/demo/round1/train/default/task.json",
    )
    parser.add_argument("task", metavar="TASK.JSON", help="the training's file: RUN/round1/train/<variant>/task.json")
    parser.add_argument("--spread", type=int, metavar="N", help="start N processes that share every batch, as torchrun "
                        "does")
    asked = parser.parse_args(arguments)
    if asked.spread is not None and asked.spread < 1:
        parser.error(f"--spread is {asked.spread}: give 1 or more")
    return asked


def _prepare(rank: int) -> None:
    """In a process that is one of several: its own device, and one of them is enough to warn."""
    import torch

    if "LOCAL_RANK" in os.environ and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if rank:
        import warnings

        from transformers.utils import logging

        warnings.simplefilter("ignore")
        logging.set_verbosity_error()


def _torchrun(arguments: list[str]) -> int:
    """torchrun without its own account of a failure: the launched processes have written theirs."""
    import logging

    from torch.distributed.run import main as torchrun

    logging.disable(logging.CRITICAL)
    try:
        torchrun(arguments)
    except Exception:  # ChildFailedError, or a signal
        return 1
    return 0


def _end_with_parent() -> None:
    while os.read(0, 1):  # not sys.stdin, whose lock the end of this process would wait for
        pass
    os._exit(1)


def _failed(file: Path, rank: int, told: dict[str, Any], text: str) -> int:
    beside = file.is_file()  # else this is no training's folder, if it is one at all
    if beside:
        write_json(file.parent / ERROR.format(rank), told)
    if not (beside and os.environ.get(_LAUNCHED)):  # nobody else tells it
        print(text, file=sys.stderr)
    return 1


def _tell(folder: Path, code: int) -> NoReturn:
    """Raise what the processes wrote: a mistake that is named before what it made others stumble over, and of those
    without a name the first."""
    files = sorted(folder.glob(ERROR.format("*")), key=lambda file: (file.stat().st_mtime_ns, file.name))
    found = [read_json(file) for file in files]
    for told in found:
        if "type" in told:
            kind: type[TalkerRLError] = getattr(errors, told["type"])
            raise kind(told["what"], where=told["where"], fix=told["fix"])
    for told in found:
        print(told["traceback"], file=sys.stderr)
        raise TrainingError(f"A process of the training failed: {told['what']}", where=str(folder),
                            fix="see the traceback above; the same command goes on from the newest checkpoint")
    raise TrainingError(f"A process of the training died (exit code {code}: killed, or out of memory?)",
                        where=str(folder), fix="start the same command again: it goes on from the newest checkpoint")


def _watching(watch: dict[str, Any] | None) -> Any:
    if watch is None:
        return contextlib.nullcontext([])
    module, _, name = watch["function"].partition(":")
    return getattr(import_module(module), name)(**watch["arguments"])
