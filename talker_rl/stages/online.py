"""What an online training needs of its run: the prompts, and somebody who decodes and judges what it samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from talker_rl.base.disk import read_json
from talker_rl.base.errors import StageError
from talker_rl.base.processes import WorkerPool
from talker_rl.config import RunConfig, load_data
from talker_rl.data.speaker_settings import SETS
from talker_rl.records.candidate import Candidate
from talker_rl.records.evaluation import EvalRow
from talker_rl.records.pair import Pair
from talker_rl.records.prompt import Prompt
from talker_rl.records.score import ScoreRow
from talker_rl.stages import tasks, worker
from talker_rl.stages.context import Context, open_pool
from talker_rl.store.shards import ShardFolder
from talker_rl.train.config import TrainConfig
from talker_rl.train.processes import part

if TYPE_CHECKING:
    from talker_rl.stages.remote import RemoteScorer


class PoolJudge:
    """Decodes and judges candidates in a run's workers, while the training process samples others.

    Args:
        config: of the run.
        prompts, held_out: its train and dev prompts that can be spoken.
        pool: with one worker the work is done here, at once.
    """

    def __init__(self, config: RunConfig, prompts: Sequence[Prompt], held_out: Sequence[Prompt], pool: WorkerPool
                 ) -> None:
        self.config, self.prompts, self.held_out, self._pool = config, list(prompts), list(held_out), pool
        self._by_id = {prompt.prompt_id: prompt for prompt in [*prompts, *held_out]}

    def submit(self, candidates: Sequence[Candidate]) -> Callable[[], list[ScoreRow]]:
        """Begin with a part for each worker; what is returned waits for all of them."""
        made = self._begin(candidates, "score")
        return lambda: [row for one in made() for row in one.scores]

    def check_up(self, candidates: Sequence[Candidate]) -> Callable[[], list[EvalRow]]:
        """Likewise by the second recognizer, with speaker similarity and F0."""
        made = self._begin(candidates, "eval")
        return lambda: [row for one in made() for row in one.rows]

    def _begin(self, candidates: Sequence[Candidate], rows: Literal["score", "eval"]
               ) -> Callable[[], list[worker.Made]]:
        parts = max(1, min(self._pool.workers, len(candidates)))
        waiting: list[Future[worker.Made]] = []
        with self._pool.watched():
            for rank in range(parts):
                mine = list(candidates[part(len(candidates), parts, rank)])
                waiting.append(self._pool.submit(worker.work, worker.Task(
                    self.config.model, judging=self._asked(mine, rows), candidates=mine)))

        def made() -> list[worker.Made]:
            with self._pool.watched():
                return [one.result() for one in waiting]

        return made

    def _asked(self, candidates: Sequence[Candidate], rows: Literal["score", "eval"]) -> worker.Judging:
        return worker.Judging(
            token2wav=self.config.token2wav, reward=self.config.reward, seed=self.config.seed,
            prompts=tasks.of_candidates(self._by_id, candidates), rows=rows, extras=int(rows == "eval"))


class ServiceJudge(PoolJudge):
    """Has services decode and judge what is sampled; check-ups stay with the run's workers.

    Args:
        remote: the services.
    """

    def __init__(self, config: RunConfig, prompts: Sequence[Prompt], held_out: Sequence[Prompt], pool: WorkerPool,
                 remote: RemoteScorer) -> None:
        super().__init__(config, prompts, held_out, pool)
        self._remote = remote
        self._thread = ThreadPoolExecutor(1)  # the client's event loop lives in one thread
        self._asked_for: list[Future[worker.Made]] = []

    def submit(self, candidates: Sequence[Candidate]) -> Callable[[], list[ScoreRow]]:
        """Ask the services; what is returned waits for their answers."""
        mine = list(candidates)
        task = worker.Task(self.config.model, candidates=mine, judging=self._asked(mine, "score"))
        waiting = self._thread.submit(self._remote, task)
        self._asked_for = [one for one in self._asked_for if not one.done()] + [waiting]
        return lambda: waiting.result().scores

    def close(self) -> None:
        """Close the connections; what still waits to be asked is not."""
        for one in self._asked_for:
            one.cancel()
        self._thread.submit(self._remote.close).result()
        self._thread.shutdown()


def live_pairs(ctx: Context, stage: str) -> list[Pair]:
    """What ``online.pairs``, as it was trained with, chooses among all that an online training sampled, for
    diagnostics: whatever its loss learned from, these tell whether its reward prefers long or short candidates, and how
    far both have moved.

    Raises:
        StageError: no group gives a pair.
    """
    from talker_rl.data.pairs import select_pairs
    from talker_rl.train.run import SETTINGS

    trained = TrainConfig.model_validate(read_json(ctx.run.path / stage / SETTINGS)["config"])
    assert trained.online is not None
    folder = ctx.run.path / stage / "online"
    candidates = ShardFolder(folder / "rollouts").read_all(Candidate)
    scores = ShardFolder(folder / "scores").read_all(ScoreRow)
    pairs, reasons = select_pairs(ctx.prompts("train"), candidates, scores, trained.online.pairs)
    if not pairs:
        told = max(reasons, key=lambda reason: reasons[reason], default="no candidates")
        raise StageError(f"No group of the online training gives a pair ({told})", where=str(folder),
                         fix="lower online.pairs.margin")
    return pairs


@contextmanager
def judging(
    config: dict[str, Any], run: str, endpoints: Sequence[str] = (), stage: str = ""
) -> Iterator[PoolJudge]:
    """A judge for a training of a run, as its task names it; its workers end with the block.

    Args:
        endpoints: services that decode and judge what is sampled; none: the run's workers do.
        stage: of the training, whose folder remembers the services' fingerprint.
    """
    settings, folder = load_data(config, where=run), Path(run)
    skipped_file = folder / "conditioning" / "skipped.json"
    skipped = read_json(skipped_file) if skipped_file.exists() else {}
    prompts, held_out = ([p for p in ShardFolder(folder / "prompts").read(SETS.index(name), Prompt)
                          if p.prompt_id not in skipped] for name in ("train", "dev"))
    with open_pool(settings) as pool:
        if not endpoints:
            yield PoolJudge(settings, prompts, held_out, pool)
            return
        from talker_rl.stages.remote import RemoteScorer

        judge = ServiceJudge(settings, prompts, held_out, pool, RemoteScorer(settings, endpoints, folder / stage))
        with closing(judge):
            yield judge
