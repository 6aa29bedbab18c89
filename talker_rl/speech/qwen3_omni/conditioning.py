"""What the Talker reads of a prompt: token embeddings of the Thinker, which the Talker projects to its own width.

They are stored before that projection, whose weights are the Talker's own. A text prompt needs no forward of the
Thinker: only the user's turns and the reply reach the Talker, and of both no more than the embeddings.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

MARKS = ("<|im_start|>", "assistant", "\n", "tts_pad", "tts_bos", "tts_eos")
"""Rows of :attr:`Conditioning.marks`."""
PAD, BOS, EOS = MARKS.index("tts_pad"), MARKS.index("tts_bos"), MARKS.index("tts_eos")


@dataclass
class Conditioning:
    """The Talker's input of one prompt, on the CPU, in the Thinker's width E. Codec embeddings are not in it."""

    prompt_id: str
    marks: torch.Tensor
    """(6, E) embeddings of the tokens that stand in every prompt."""
    user: torch.Tensor
    """(U, E) embeddings of all tokens of the user's turns, their marks included; system turns are left out."""
    reply: torch.Tensor
    """(R, E) embeddings of the reply's tokens, at least one; its end token is not among them."""
    speaker: str
    speaker_id: int
    """The voice: a row of the codec embedding."""
    reply_text: str = ""

    def tensors(self) -> dict[str, torch.Tensor]:
        """What is stored and hashed, by name."""
        return {"marks": self.marks, "user": self.user, "reply": self.reply,
                "speaker_id": torch.tensor(self.speaker_id)}
