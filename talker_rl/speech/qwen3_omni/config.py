"""Settings of the code predictor. Imports no torch."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class ResidualSampling(BaseModel):
    """How a frame's fifteen residual codes are drawn: upstream's values, which it does not let be set. Whether they
    are drawn or the best ones are taken is said by the Talker's own ``do_sample``."""

    model_config = ConfigDict(extra="forbid")

    temperature: float = Field(default=1.0, gt=0, description="Divides the predictor's logits.")
    top_k: int = Field(default=50, ge=0, description="Keep the k most probable codes; 0 keeps all.")
    top_p: float = Field(default=0.8, gt=0, le=1, description="Keep the smallest set of codes with this probability.")
