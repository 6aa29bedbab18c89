"""A quick anti-aliased activation for training the vocoder on a CPU.

transformers' module runs two depthwise resampling convolutions and five elementwise passes, and their
gradients; they are most of a training step. ``fast_snake.c`` does the same in one pass per row. Where there is no
C compiler, training uses the module itself, several times slower.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniAntiAliasedActivation1d


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The compiled kernel, or None where no C compiler is found."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    target = Path(tempfile.mkdtemp(prefix="fast-snake-")) / "fast_snake.so"
    source = Path(__file__).with_name("fast_snake.c")
    # Not -ffast-math: loading a library linked with it switches off subnormal floats in the whole process.
    relaxed = ["-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math", "-freciprocal-math"]
    flags = ["-O3", "-march=native", *relaxed, "-fopenmp-simd", "-mprefer-vector-width=512", "-shared", "-fPIC"]
    done = subprocess.run([compiler, *flags, str(source), "-o", str(target), "-lm"], capture_output=True)
    if done.returncode != 0:
        return None
    return ctypes.CDLL(str(target))


def _kernel() -> ctypes.CDLL:
    kernel = library()
    if kernel is None:
        raise RuntimeError("fast_snake needs a C compiler; call accelerate(), which asks first")
    return kernel


def _p(t: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(t.data_ptr())


class _FastSnake(torch.autograd.Function):
    """x (B, C, T), log alpha (C,), log beta (C,), filter (12,) -> (B, C, T), float32 on the CPU."""

    @staticmethod
    def forward(ctx, x: Tensor, log_alpha: Tensor, log_beta: Tensor, kernel: Tensor) -> Tensor:
        x = x.contiguous()
        alpha, beta = log_alpha.exp(), log_beta.exp() + 1e-9
        ctx.save_for_backward(x, alpha, beta, kernel)
        y = torch.empty_like(x)
        rows = x.shape[0] * x.shape[1]
        _kernel().aa_forward(_p(x), _p(y), _p(alpha), _p(beta), _p(kernel), rows, x.shape[1], x.shape[2])
        return y

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, alpha, beta, kernel = ctx.saved_tensors
        grad = grad.contiguous()
        dx, da, db = torch.empty_like(x), torch.zeros_like(alpha), torch.zeros_like(beta)
        rows = x.shape[0] * x.shape[1]
        _kernel().aa_backward(
            _p(x), _p(grad), _p(dx), _p(alpha), _p(beta), _p(da), _p(db), _p(kernel), rows, x.shape[1], x.shape[2]
        )
        return dx, da, db, None


def snake(module: Qwen2_5OmniAntiAliasedActivation1d, x: Tensor) -> Tensor:
    """What ``module(x)`` computes, by the kernel."""
    return _FastSnake.apply(x, module.act.alpha, module.act.beta, module.upsample.filter.reshape(-1).contiguous())


def accelerate(model: nn.Module) -> bool:
    """Route every anti-aliased activation of ``model`` through the kernel; False (nothing changed) without one."""
    if library() is None:
        return False
    for module in model.modules():
        if isinstance(module, Qwen2_5OmniAntiAliasedActivation1d):
            module.forward = snake.__get__(module)  # bound to this instance only
    return True
