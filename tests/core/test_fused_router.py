"""Eq. 4-6: the kernel in Triton's interpreter, compiled for GPUs that are not there, on one; and when it runs."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from elastic_dit import ElasticConfig
from elastic_dit.core import ready_routers
from elastic_dit.core import router as router_module
from elastic_dit.core.ready_routers import StackedRouters, plain_read
from elastic_dit.core.router import ACTIVATIONS, Router, fuses, masked_mean, plain_pool
from elastic_dit.core.router_stack import RouterStack

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def exact(x: Tensor, gamma: Tensor, weight: Tensor, shift: Tensor, mask: Tensor | None, activation: str) -> Tensor:
    """`plain_pool` in float64."""
    x = F.layer_norm(x.double(), x.shape[-1:], eps=1e-6) * (1 + gamma.double()).unsqueeze(1)
    h = ACTIVATIONS[activation](x @ weight.double().mT + shift.double().unsqueeze(1))
    return masked_mean(h, mask)


def assert_exact(x: Tensor, hidden: int, mask: Tensor | None, activation: str, atol: float = 1e-6) -> None:
    """The kernel is float32's rounding away from float64; values are of the order of 1."""
    from elastic_dit.core.fused_router import fused_pool, scale

    batch, _, dim = x.shape
    shapes = (2, batch, dim), (2, hidden, dim), (batch, hidden)
    gamma, weight, shift = (torch.randn(shape).to(x.device) for shape in shapes)
    gamma, weight = gamma / 4, weight / dim**0.5
    for block, scaled in enumerate(scale(weight, gamma, x.dtype)):
        pooled = fused_pool(x, scaled, shift, mask, activation)
        assert pooled.dtype == torch.float32
        wanted = exact(x, gamma[block], weight[block], shift, mask, activation)
        torch.testing.assert_close(pooled.double(), wanted, rtol=0, atol=atol)


def interpret() -> None:
    """What the interpreter checks, in a process that began with TRITON_INTERPRET=1."""
    _let_it_multiply_bfloat16()
    torch.manual_seed(0)
    batch, tokens, dim = 3, 70, 150  # two tiles, three chunks, the last ones ragged
    mask = torch.rand(tokens, batch).gt(0.5).T
    mask[1] = False  # no token counts
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for activation in ACTIVATIONS:
            print(dtype, activation, flush=True)  # the last one printed is the one that failed
            x = torch.randn(batch, tokens, dim) + 0.3
            x[..., 7] *= 3000
            assert_exact(x.to(dtype), 6, mask, activation)
            assert_exact(x.to(dtype), 20, None, activation)
    print("strides")
    x = torch.randn(batch, 2 * tokens, dim).bfloat16()
    assert_exact(x[:, 5 : 5 + tokens], 6, None, "gelu")
    assert_exact(x[:, ::2], 6, mask, "gelu")
    assert_exact(torch.randn(dim, batch, tokens).permute(1, 2, 0), 6, mask, "gelu")
    print("sizes")
    for shape, hidden in (((1, 1, 3), 1), ((2, 64, 64), 16), ((1, 65, 40), 130)):
        assert_exact(torch.randn(shape).bfloat16(), hidden, None, "silu")
    print("a mean far from zero")
    for dtype in (torch.bfloat16, torch.float32):
        assert_exact((torch.randn(batch, tokens, dim) + 50).to(dtype), 6, None, "relu", atol=2e-5)
    print("a router")
    router, inputs = Router(ElasticConfig.of(init="random", modulation="full"), dim, 8), (x, torch.randn(batch, 8))
    with torch.no_grad():
        plain = router(*inputs)
        router_module.fuses = ready_routers.fuses = lambda _: True
        torch.testing.assert_close(router(*inputs), plain, rtol=1e-5, atol=1e-6)
        print("all routers of a transformer")
        stack = RouterStack(ElasticConfig.of(init="random"), dim, 8, blocks=3)
        ready = StackedRouters(stack).at(stack.condition(torch.randn(batch, 8)))
        for index in range(3):
            plain = plain_read(x, None, ready.block(index))
            torch.testing.assert_close(ready.pool(index, x, None, plain_read), plain, rtol=1e-5, atol=1e-6)


def _let_it_multiply_bfloat16() -> None:
    """Triton's interpreter keeps bfloat16 as 16-bit integers and, up to 3.7 at least, multiplies those."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder

    dot = InterpreterBuilder.create_dot

    def create_dot(self: Any, a: Any, b: Any, *others: Any) -> Any:
        a, b = (self.create_fp_ext(each, tl.float32) if each.dtype.scalar == tl.bfloat16 else each for each in (a, b))
        return dot(self, a, b, *others)

    InterpreterBuilder.create_dot = create_dot


@pytest.mark.slow
@needs_triton
def test_the_interpreted_kernel_is_float32s_rounding_away_from_float64() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    run = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.endswith("all routers of a transformer\n")


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("dtype", "hidden"), [("bf16", 64), ("bf16", 16), ("bf16", 256), ("fp16", 64), ("fp32", 64)])
def test_the_kernel_compiles_without_a_gpu(
    capability: int, dtype: str, hidden: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from elastic_dit.core.fused_router import blocks, pool_tile, scale_weight

    def compiled(kernel: Any, pointers: dict[str, str], constants: dict[str, Any], **options: int) -> Any:
        constant = constants | {"x_d": 1} if "x_d" in kernel.arg_names else constants
        types = dict.fromkeys(kernel.arg_names, "i32") | pointers | dict.fromkeys(constant, "constexpr")
        aligned = [name for name in kernel.arg_names if name in {*pointers, "D", "x_b", "x_t"} - {"mask"}]
        attributes = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned}
        source = ASTSource(kernel, types, constant, attributes)
        made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        assert made.asm["cubin"]
        assert made.metadata.shared <= 99 * 1024  # what every GPU since capability 8.0 has: 99 KB to 227 KB
        return made

    sizes = blocks(hidden)
    parts = "*bf16" if dtype == "bf16" else "*fp32"
    floats = dict.fromkeys(("weight", "gamma", "weight_sum"), "*fp32")
    compiled(scale_weight, floats | {"parts": parts}, {"exact": dtype != "bf16", "BD": 4096})
    pointers = dict.fromkeys(("weight_sum", "shift", "partial"), "*fp32") | {"x": f"*{dtype}", "mask": "*i1"}
    constants = {"activation": "gelu"} | {name: sizes.pop(name) for name in ("BT", "BD", "BR")}
    made = compiled(pool_tile, pointers | {"parts": parts}, constants, **sizes)
    instructions = made.asm["ptx"]
    assert ".tf32" not in instructions
    tensor_cores = "wgmma.mma_async" if capability == 90 and hidden >= 64 else "mma.sync"
    assert (tensor_cores in instructions) == (dtype == "bf16")


@pytest.mark.gpu
@needs_gpu
@needs_triton
@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_fused_is_plain_on_a_gpu(dtype: torch.dtype, activation: str) -> None:
    x = torch.randn(2, 4200, 3072, device="cuda")
    x[..., 7] *= 3000
    mask = torch.rand(2, 4200, device="cuda") > 0.5
    for masked in (None, mask):
        assert_exact(x.to(dtype)[:, 50:], 64, None if masked is None else masked[:, 50:], activation, atol=5e-6)
    router = Router(ElasticConfig.of(init="random", router_activation=activation), 3072, 32).cuda()
    inputs = (x.to(dtype), torch.randn(2, 32, device="cuda"), mask)
    plain = router(*inputs)
    with torch.no_grad():
        assert fuses(inputs[0])
        fused = router(*inputs)
        for one, again, other in zip(fused, router(*inputs), plain, strict=True):
            assert torch.equal(one, again)
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_on_a_cpu_the_plain_form_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router_module, "has_triton_package", lambda: True)
    monkeypatch.setitem(sys.modules, "elastic_dit.core.fused_router", None)  # to import it is an error
    x, gamma, weight, shift = torch.randn(2, 5, 8), torch.randn(2, 8), torch.randn(6, 8), torch.randn(2, 6)
    with torch.no_grad():
        assert not fuses(x)
        router = Router(ElasticConfig.of(init="random"), 8, 4)
        assert router(x, torch.randn(2, 4)).gate_logit.isfinite().all()
        pooled = router_module.pool(x, gamma, weight, shift, None, "relu")
    assert torch.equal(pooled, plain_pool(x, gamma, weight, shift, None, "relu"))


def test_the_kernel_runs_where_nobody_looks_at_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU of capability 8.0, without gradients, compilers and counters."""
    x: Any = SimpleNamespace(is_cuda=True, device="cuda")
    monkeypatch.setattr(router_module, "has_triton_package", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    assert not fuses(x)
    with torch.no_grad():
        assert fuses(x)
        with FlopCounterMode(display=False):
            assert not fuses(x)
        with monkeypatch.context() as patch:
            patch.setattr(torch.compiler, "is_compiling", lambda: True)
            assert not fuses(x)
        with monkeypatch.context() as patch:
            patch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
            assert not fuses(x)
        with monkeypatch.context() as patch:
            patch.setattr(router_module, "has_triton_package", lambda: False)
            assert not fuses(x)


if __name__ == "__main__":
    interpret()
