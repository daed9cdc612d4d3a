"""The Triton kernel against the float64 loop: on the GPU, or in Triton's interpreter without one.

The interpreter has to be chosen before Triton is imported, so there a process of its own
runs this file again.
"""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spanwise import kernels, spans
from spanwise.advantages import recurrence, span_advantages

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="needs triton, which comes with CUDA builds"
)
where_it_runs = pytest.mark.skipif(
    not INTERPRETED and DEVICE == "cpu", reason="the interpreter's process runs it"
)


@pytest.fixture(autouse=True)
def the_kernel_runs(monkeypatch):
    """``span_advantages`` uses the kernel on CPU tensors too, in chunks of 8 places."""
    if INTERPRETED or DEVICE == "cuda":
        from spanwise.kernels import cuda

        monkeypatch.setattr(cuda, "CHUNK", 8)
        monkeypatch.setattr(recurrence, "recurrence_for", lambda x: cuda.span_recurrence)


@pytest.mark.skipif(INTERPRETED or DEVICE == "cuda", reason="runs by itself")
def test_in_the_interpreter():
    # Where there is a GPU as well, Triton is not to find it.
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", __file__]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0 and " passed" in run.stdout, run.stdout + run.stderr


def loop_advantages(rewards, values, partition, gamma, lam, bootstrap):
    """The formula of ``span_advantages``, one model token at a time from the end, in float64."""
    result = torch.zeros(partition.shape, dtype=torch.float64)
    for i, row in enumerate(partition.tolist()):
        next_value, next_advantage, next_span = float(bootstrap[i]), 0.0, None
        for t in reversed(range(len(row))):
            if row[t] < 0:
                continue
            trace = 1.0 if row[t] == next_span else float(lam[i])
            delta = float(rewards[i, t]) + gamma * next_value - float(values[i, t])
            next_advantage = delta + gamma * trace * next_advantage
            next_value, next_span = float(values[i, t]), row[t]
            result[i, t] = next_advantage
    return result


@st.composite
def batches(draw):
    """Rewards, values, spans, lam and bootstrap; NaN where masked, some rows empty."""
    num_rows, width = draw(st.integers(1, 4)), draw(st.integers(1, 40))
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def uniform(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    mask = uniform(num_rows, width) < draw(st.sampled_from([0.1, 0.6, 1.0]))
    partition = spans.by_probability(
        uniform(num_rows, width).log(), mask, threshold=draw(st.sampled_from([0.0, 0.2, 0.5, 1.1]))
    )
    rewards, values = (
        torch.where(mask, uniform(num_rows, width) * 4 - 2, torch.nan).to(dtype) for _ in range(2)
    )
    lam = torch.where(uniform(num_rows) < 0.2, uniform(num_rows).round(), uniform(num_rows))
    return rewards, values, partition, lam, (uniform(num_rows) * 4 - 2).to(dtype)


@where_it_runs
@settings(max_examples=80, deadline=None)
@given(batches(), st.sampled_from([0.0, 0.9, 1.0]), st.booleans())
def test_equals_the_loop(batch, gamma, truncated):
    rewards, values, partition, lam, bootstrap = batch
    bootstrap = bootstrap * truncated
    got = span_advantages(
        *(x.to(DEVICE) for x in (rewards, values, partition)),
        gamma=gamma,
        lam=lam.to(DEVICE),
        bootstrap=bootstrap.to(DEVICE) if truncated else None,
    ).cpu()
    expected = loop_advantages(rewards, values, partition, gamma, lam, bootstrap)
    assert got.dtype == values.dtype and (got[partition < 0] == 0).all()
    working = torch.promote_types(values.dtype, torch.float32)
    tolerance = 200 * torch.finfo(working).eps
    half = 0.5 * torch.finfo(values.dtype).eps if working != values.dtype else 0.0
    torch.testing.assert_close(got.double(), expected, rtol=tolerance + half, atol=tolerance)


@where_it_runs
@pytest.mark.parametrize("width", [7, 8, 9, 16, 17, 25])
def test_chunks_hand_over_across_masked_places(width):
    """One model token at each end, and nothing but masked places in between."""
    partition = torch.full((2, width), -1, device=DEVICE)
    partition[:, 0] = 0
    partition[:, -1] = torch.tensor([0, 1], device=DEVICE)  # the same span; another
    rewards = torch.full((2, width), torch.nan, device=DEVICE)
    values = rewards.clone()
    rewards[:, 0], rewards[:, -1] = 0.25, 1.0
    values[:, 0], values[:, -1] = 0.5, 0.75
    got = span_advantages(
        rewards, values, partition, gamma=0.5, lam=0.5, bootstrap=values[:, 0].clone()
    )
    last = 1 + 0.5 * 0.5 - 0.75
    delta = 0.25 + 0.5 * 0.75 - 0.5
    assert got[:, -1].tolist() == [last, last]
    assert got[:, 0].tolist() == [delta + 0.5 * last, delta + 0.25 * last]
    assert (got[:, 1:-1] == 0).all()


@where_it_runs
def test_rows_without_model_tokens_and_without_places():
    rewards = torch.full((3, 11), torch.nan, device=DEVICE)
    empty = torch.full((3, 11), -1, device=DEVICE)
    assert (span_advantages(rewards, rewards, empty) == 0).all()
    for shape in ((0, 0), (0, 3), (3, 0)):
        x = torch.zeros(shape, device=DEVICE)
        assert span_advantages(x, x, x.long()).shape == shape


@where_it_runs
def test_span_numbers_of_any_size_are_told_apart():
    partition = torch.tensor([[0, 2**32, 2**40 + 1]], device=DEVICE)
    values = torch.tensor([[0.5, 0.25, 0.75]], device=DEVICE)
    expected = span_advantages(values, values, torch.arange(3, device=DEVICE)[None], lam=0.5)
    assert torch.equal(span_advantages(values, values, partition, lam=0.5), expected)


@where_it_runs
def test_a_nan_value_reaches_earlier_tokens_of_its_row_only():
    values = torch.zeros(2, 30, device=DEVICE)
    values[0, 20] = torch.nan
    tokens = torch.arange(30, device=DEVICE).expand(2, 30)
    got = span_advantages(torch.zeros_like(values), values, tokens, lam=0.0)
    assert got[0, :21].isnan().all()
    assert (got[0, 21:] == 0).all() and (got[1] == 0).all()


@where_it_runs
@pytest.mark.parametrize("place", [0, 13, 29])
def test_a_nan_reward_is_refused(place):
    rewards = torch.zeros(2, 30, device=DEVICE)
    tokens = torch.arange(30, device=DEVICE).repeat(2, 1)
    rewards[1, place] = torch.nan
    with pytest.raises(ValueError, match="reward is NaN"):
        span_advantages(rewards, torch.zeros_like(rewards), tokens)
    tokens[1, place] = -1
    assert (span_advantages(rewards, torch.zeros_like(rewards), tokens) == 0).all()


@where_it_runs
def test_layouts_do_not_matter():
    generator = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(2, 6, 21, generator=generator).to(DEVICE)
    partition = spans.by_token(torch.rand(6, 21, generator=generator).to(DEVICE) < 0.7)
    turned = [x.T.contiguous().T for x in (rewards, values, partition)]
    assert torch.equal(span_advantages(*turned), span_advantages(rewards, values, partition))


@pytest.mark.skipif(INTERPRETED, reason="the interpreter stands in for the compiler")
def test_the_code_compiles_for_a_gpu():
    """Down to machine code, which needs no GPU: the interpreter is laxer than the compiler."""
    script = (
        "from triton import compile; from triton.compiler import ASTSource\n"
        "from triton.backends.compiler import GPUTarget; from spanwise.kernels import cuda\n"
        "kernel = cuda._span_recurrence\n"
        "for dtype in ('fp32', 'fp64'):\n"
        "    types = dict.fromkeys(kernel.arg_names, '*' + dtype)\n"
        "    types |= {'spans': '*i64', 'never_scored': '*i32', 'chunk': 'constexpr'}\n"
        "    types |= {'num_rows': 'i32', 'num_places': 'i32'}\n"
        "    source = ASTSource(kernel, types, {'chunk': 256})\n"
        "    print(len(compile(source, target=GPUTarget('cuda', 90, 32)).asm['cubin']))\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    sizes = [int(line) for line in run.stdout.split()]
    assert len(sizes) == 2 and min(sizes) > 0


def test_which_tensors_get_the_kernel(monkeypatch):
    on_gpu = torch.empty(0).as_subclass(OnGPU)
    monkeypatch.delenv("SPANWISE_KERNELS", raising=False)
    kernels._kernels.cache_clear()
    try:
        found = kernels.recurrence_for(on_gpu)
        assert found is not None and found.__module__ == "spanwise.kernels.cuda"
        assert kernels.kernels_for(on_gpu) is None
        monkeypatch.setenv("SPANWISE_KERNELS", "0")
        kernels._kernels.cache_clear()
        assert kernels.recurrence_for(on_gpu) is None
    finally:
        kernels._kernels.cache_clear()


class OnGPU(torch.Tensor):
    """Says that it lies on a GPU."""

    device = torch.device("cuda")
