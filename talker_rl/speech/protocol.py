"""What a speech generator is to the rest of the house. Rooms outside ``speech/`` talk to these and to nothing else of a
family.

A **family** (:class:`~talker_rl.speech.family.Family`) is a kind of generator, known before any weights are read. A
**generator** is one that is loaded, whole or in parts. A **policy** is its Talker with some weights: what is sampled
from, trained and measured.

    S  sequences of a batch         T  steps of the longest: frames, and the stop
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, Self

from talker_rl.base.findings import Finding
from talker_rl.records.candidate import Candidate
from talker_rl.records.codec import Codec
from talker_rl.records.prompt import Prompt
from talker_rl.records.speech import Speech
from talker_rl.speech.config import ConditioningConfig, LoraSettings, ModelConfig, SamplingConfig, Token2WavConfig

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor, nn

    from talker_rl.base.errors import TalkerRLError
    from talker_rl.speech.sequence import SequenceGroup

Progress = Callable[[int, int], None]
"""Called with (done, total)."""
Ended = Callable[[list["Candidate"]], None]
"""Called with candidates as they end, in an order that their seeds decide."""


class Conditioning(Protocol):
    """What the Talker reads of one prompt. A family's own class; here only what others may look at."""

    prompt_id: str
    speaker: str
    reply_text: str

    @property
    def codec(self) -> str:
        """Name of the family's codec."""
        ...

    @property
    def rows(self) -> tuple[int, int]:
        """Positions of the prefix, and rows of the reply stream."""
        ...

    def tensors(self) -> Mapping[str, Tensor]:
        """Everything that decides a log-prob, by name: what is stored, and what content hashes are made of."""
        ...


@dataclass(frozen=True)
class TalkerSequence:
    """One sequence to score: what was said to which conditioning.

    >>> policy.logps(policy.collate([TalkerSequence(seen, candidate.speech)]))
    """

    conditioning: Any
    speech: Speech


@dataclass(frozen=True)
class SampleRequest:
    """Candidates to sample of one prompt, one a seed.

    >>> policy.sample([SampleRequest(seen, seeds=[1, 2])], SamplingConfig())
    """

    conditioning: Any
    seeds: Sequence[int]


@dataclass(frozen=True)
class Utterance:
    """Codes to decode.

    >>> [sound] = generator.decode([Utterance(candidate.codes, "Chelsie", seed=0)])
    """

    codes: Sequence[int]
    """No stop among them."""
    speaker: str
    seed: int | None = None
    """Of the decoder's noise; None where the codec has none."""


class PolicyBatch(Protocol):
    """S sequences, collated: one forward."""

    @property
    def mask_ST(self) -> Tensor:
        """(S, T) bool: True on steps, the stop included."""
        ...

    def to(self, device: torch.device | str) -> Self:
        """The batch on a device."""
        ...

    def __len__(self) -> int: ...


class Compared(NamedTuple):
    """Policy and reference at each step of a batch; all (S, T) float32, 0 at padding."""

    logps_ST: Tensor
    stops_ST: Tensor
    """Raw log-prob of stopping, under the policy."""
    ref_logps_ST: Tensor
    kl_ST: Tensor
    """KL(policy || reference) of what may come next, over the whole vocabulary, nats. Its sum over a sequence that the
    policy sampled without processing is an estimate of the KL of the sequences' distributions without the noise of the
    sampled ids; of a frame of several codes, each code's is given those before it."""


class Policy(Protocol):
    """A Talker with some weights, and the reference it is measured against."""

    codec: Codec
    sparse: bool
    """Whether a router chooses experts: rounding then may choose others, so that in half precision only means of
    differences can be bounded."""
    terms: int
    """Log-probs that a step's is the sum of; float noise grows with them."""
    module: Any
    """torch module: what an optimizer, DDP or DeepSpeed gets."""

    def sample(
        self, requests: Sequence[SampleRequest], sampling: SamplingConfig, *, batch_size: int = 64,
        progress: Progress | None = None, ended: Ended | None = None,
    ) -> list[Candidate]:
        """Candidates in order of request, then seed; each depends on its own seed alone."""
        ...

    def collate(self, sequences: Sequence[TalkerSequence]) -> PolicyBatch:
        """A batch of one forward; sequences of the same prompt and content may share work."""
        ...

    sequence: SequenceGroup | None
    """Processes that share every row of ``logps``; None: each has whole rows."""

    def share_rows(self, size: int) -> None:
        """From now on ``logps`` is one computation of so many neighboring processes, each with a part of the row.

        Raises:
            ConfigError: the Talker's heads, or the processes, cannot be divided so.
        """
        ...

    def logps(self, batch: PolicyBatch, module: nn.Module | None = None) -> Tensor:
        """Raw natural log-probs (S, T) float32, one a step, summed over a frame's codes; 0 at padding. They equal those
        that ``sample`` recorded.

        Args:
            module: ``module`` as DDP or an engine wrapped it, so that its hooks run.
        """
        ...

    def logps_and_stops(self, batch: PolicyBatch) -> tuple[Tensor, Tensor]:
        """``logps``, and the raw log-prob of stopping at each step; both (S, T)."""
        ...

    def rerouted(self) -> float | None:
        """Share of (position, layer) of the last forward in which routers would have chosen other experts than the
        rollout's, which they were given; None where none were given."""
        ...

    def compared(self, batch: PolicyBatch) -> Compared:
        """The policy beside its reference (:meth:`as_reference`) on a batch, without gradient.

        Raises:
            ConfigError: full weights are trained, which leave no reference behind.
        """
        ...

    def code_logps(self, batch: PolicyBatch) -> Tensor:
        """Raw log-probs (S, T, groups) float32 of every code, without gradient: which code of a frame differs, and what
        another engine has summed, is seen in these alone. A stop's is in group 0; 0 elsewhere."""
        ...

    def processed_logps(self, batch: PolicyBatch, sampling: SamplingConfig) -> Tensor:
        """``logps``, without gradient, under the distribution that ``sample`` draws from with these options:
        ``Candidate.processed_logps``; -inf where an id cannot be drawn."""
        ...

    def as_reference(self) -> AbstractContextManager[None]:
        """Inside, the policy computes what training measures against."""
        ...

    def reference_identity(self) -> str:
        """Content hash of the weights that the reference computes with."""
        ...

    def save(self, folder: str | Path, state: Mapping[str, Tensor] | None = None) -> None:
        """Write the policy's weights (an adapter in PEFT's layout, or the Talker's own).

        Args:
            state: weights that an engine has gathered; None: the module's own.
        """
        ...

    def exchange(self, folder: Path) -> None:
        """Put an adapter of the same settings into the place of the one that the policy was loaded with.

        Raises:
            CheckpointError: it is missing, damaged, not finite, of another geometry or trained on another base; the
                policy is as it was.
        """
        ...

    def load(self, folder: str | Path) -> None:
        """Put weights that ``save`` wrote into the policy that is there.

        Raises:
            CheckpointError: they are not of this policy.
        """
        ...


class NewSpeaker(Protocol):
    """A speaker that is to be added to a model: made of the options of ``speaker add``."""

    @property
    def trained(self) -> bool:
        """Whether the Talker must be trained on it before it speaks like it."""
        ...

    @property
    def names(self) -> Sequence[str]:
        """All speakers, the new one among them."""
        ...

    def lenders(self, options: Any) -> Sequence[str]:
        """Old speakers that lend a part of the voice."""
        ...

    def look(self) -> Iterator[Finding]:
        """Findings on it before anything is decoded."""
        ...

    def decoder(self) -> Generator:
        """The loaded decoder, which knows the new speaker as well."""
        ...

    def likeness(self, decoder: Any, sounds: Sequence[np.ndarray]) -> Iterator[Finding]:
        """Findings on whose voice the sounds have."""
        ...

    def save(self, out: Path) -> str:
        """Write all speakers there, whole or not at all; returns the setting that uses them."""
        ...


Training = LoraSettings | Literal["full"]
"""What of a policy is trained: a new adapter, or the Talker's own weights."""


class Generator(Protocol):
    """A loaded speech generator, whole or in parts."""

    codec: Codec
    settings: ModelConfig
    device: Any

    @property
    def speakers(self) -> Sequence[str]:
        """Names, sorted."""
        ...

    def condition(
        self, prompts: Sequence[Prompt], cfg: ConditioningConfig | None = None, *,
        errors: dict[str, TalkerRLError] | None = None, progress: Progress | None = None,
    ) -> list[Any]:
        """:class:`Conditioning` of the prompts, in order.

        Args:
            errors: where given, prompts that cannot be used are left out and noted here by prompt id; otherwise the
                first one raises.
        """
        ...

    def conditioning_key(self, prompt: Prompt, cfg: ConditioningConfig) -> str:
        """Content hash of everything that a prompt's conditioning depends on."""
        ...

    def policy(
        self, weights: str | Path | None = None, *, reference: str | Path | None = None, train: Training | None = None,
        seed: int = 0,
    ) -> AbstractContextManager[Policy]:
        """The Talker with some weights; on leaving, the generator is what it was.

        Args:
            weights: folder of an adapter, or of full Talker weights; None is the base.
            reference: adapter of which a frozen copy is the reference; None: the base is.
            train: what is trained; None: nothing. With an adapter as ``weights`` that one is trained on.
            seed: of a new adapter's initialization.
        """
        ...

    def wear(self, weights: Path) -> tuple[Policy, Callable[[], None]]:
        """The Talker with an adapter that stays on, and what takes it off: until then ``policy`` must not be called."""
        ...

    def decode(
        self, utterances: Sequence[Utterance], settings: Token2WavConfig | None = None, *,
        progress: Progress | None = None,
    ) -> list[np.ndarray]:
        """Speech of each: float32 samples at ``codec.sample_rate``."""
        ...

    def similarity(self, sound: np.ndarray, speaker: str) -> float | None:
        """Likeness of a voice to a speaker's reference, -1 to 1; None where the family cannot tell."""
        ...

    def voice(self, sound: np.ndarray) -> Mapping[str, np.ndarray]:
        """What tells voices apart in a sound, by kind: ``spectrum`` (long-term), and ``embedding`` where the family has
        an encoder of speakers."""
        ...

    def reference_voice(self, speaker: str) -> np.ndarray:
        """The embedding of a speaker's reference.

        Raises:
            ConfigError: the family has no encoder of speakers.
        """
        ...

    def identity(self, part: str) -> str:
        """Content hash of the files that a part (``conditioner``, ``talker``, ``decoder``) was loaded from."""
        ...
