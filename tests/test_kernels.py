"""The compiled loops against the plain torch forms that stand in for them."""

import multiprocessing
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spanwise import kernels, spans
from spanwise.advantages import recurrence, span_advantages

cpu = pytest.importorskip("spanwise.kernels.cpu")


@st.composite
def batches(draw):
    """Values, rewards, spans, lam and bootstrap; NaN where masked, some rows empty."""
    num_rows, width = draw(st.integers(1, 5)), draw(st.integers(1, 24))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def uniform(*shape):
        return torch.rand(*shape, generator=generator, dtype=dtype)

    mask = uniform(num_rows, width) < draw(st.sampled_from([0.1, 0.6, 1.0]))
    scores = torch.where(mask, uniform(num_rows, width), torch.nan)
    partition = spans.by_probability(
        scores.log(), mask, threshold=draw(st.sampled_from([0.0, 0.4, 1.1]))
    )
    values, rewards = (torch.where(mask, uniform(num_rows, width), torch.nan) for _ in range(2))
    return rewards, values, partition, uniform(num_rows), uniform(num_rows)


@given(batches(), st.sampled_from([0.0, 0.9, 1.0]))
def test_the_recurrence_equals_the_scan(batch, gamma):
    rewards, values, partition, lam, bootstrap = batch
    options = {"gamma": gamma, "lam": lam.double(), "bootstrap": bootstrap}
    got = cpu.span_recurrence(rewards, values, partition, **options)
    expected = recurrence._scanned_recurrence(rewards, values, partition, **options)
    tolerance = 20 * torch.finfo(got.dtype).eps
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)
    assert got.dtype == values.dtype and (got[partition < 0] == 0).all()


@given(batches(), st.floats(0, 1), st.booleans())
def test_spans_below_equal_the_torch_form(batch, limit, closes):
    scores, mask = batch[1], batch[2] >= 0
    got = cpu.spans_below(scores, mask, limit=limit, closes=closes)
    side = "end" if closes else "start"
    assert torch.equal(got, spans._bounded(scores < limit, mask, side))


def test_spans_below_find_a_score_that_is_not_there():
    scores = torch.tensor([[0.1, torch.nan], [0.1, torch.nan]])
    mask = torch.tensor([[True, False], [True, False]])
    assert cpu.spans_below(scores, mask, limit=0.5, closes=False) is not None
    mask[1, 1] = True
    assert cpu.spans_below(scores, mask, limit=0.5, closes=False) is None


@given(batches())
def test_means_and_lengths_equal_the_torch_form(batch):
    x, partition = batch[1], batch[2]
    got = cpu.span_means(x, partition)
    torch.testing.assert_close(got, spans._scattered_means(x, partition), rtol=1e-6, atol=1e-6)
    lengths = cpu.span_lengths(partition)
    expected = torch.zeros_like(partition)
    for i, row in enumerate(partition.tolist()):
        for t, span in enumerate(row):
            expected[i, t] = row.count(span) if span >= 0 else 0
    assert torch.equal(lengths, expected)


def test_the_precision_of_a_threshold_is_that_of_the_log_probs():
    """In float32 the log of 0.2 is a little above the exact one; it is not below itself."""
    mask = torch.ones(1, 2, dtype=torch.bool)
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        logprobs = torch.full((1, 2), 0.2, dtype=torch.float64).log().to(dtype)
        assert spans.by_probability(logprobs, mask, threshold=0.2).tolist() == [[0, 0]]


@pytest.mark.parametrize("num_threads", [2, 3])
def test_threads_do_not_change_a_bit(num_threads, monkeypatch):
    monkeypatch.setattr(cpu, "MIN_PART", 1)
    generator = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(2, 7, 50, generator=generator)
    partition = spans.by_turn(torch.rand(7, 50, generator=generator) < 0.7)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, num_threads):
            torch.set_num_threads(threads)
            found.append(
                (span_advantages(rewards, values, partition), spans.span_means(values, partition))
            )
    finally:
        torch.set_num_threads(before)
    for one, many in zip(*found, strict=True):
        assert torch.equal(one, many)


def test_an_error_in_a_thread_is_raised(monkeypatch):
    monkeypatch.setattr(cpu, "MIN_PART", 1)
    rewards = torch.zeros(4, 3)
    rewards[3, 1] = torch.nan
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with pytest.raises(ValueError, match="reward is NaN"):
            span_advantages(rewards, rewards * 0, torch.arange(3).expand(4, 3))
    finally:
        torch.set_num_threads(before)


def forked_mean(_):
    x = torch.ones(4, 3)
    return spans.span_means(x, torch.zeros(4, 3, dtype=torch.int64)).sum().item()


@pytest.mark.processes
@pytest.mark.skipif(sys.platform != "linux", reason="fork is Linux's way to start a process")
def test_kernels_work_in_a_forked_process(monkeypatch):
    monkeypatch.setattr(cpu, "MIN_PART", 1)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert forked_mean(0) == 12
        with multiprocessing.get_context("fork").Pool(1) as pool:
            assert pool.map_async(forked_mean, [0]).get(timeout=60) == [12]
    finally:
        torch.set_num_threads(before)


def test_a_span_number_out_of_range_is_refused():
    too_large = torch.tensor([[0, 2]])
    with pytest.raises(ValueError, match="not below the number of places"):
        spans.span_means(torch.ones(1, 2), too_large)
    with pytest.raises(ValueError, match="not below the number of places"):
        spans.span_lengths(too_large)


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0)])
def test_nothing_in_nothing_out(shape):
    x, partition = torch.zeros(shape), torch.zeros(shape, dtype=torch.int64)
    assert span_advantages(x, x, partition).shape == shape
    assert spans.span_means(x, partition).shape == shape
    assert spans.by_probability(x, partition > 0).shape == shape


def test_layouts_do_not_matter():
    generator = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(2, 6, 5, generator=generator)
    partition = spans.by_token(torch.rand(6, 5, generator=generator) < 0.7)
    turned = [x.T.contiguous().T for x in (rewards, values, partition)]
    assert not turned[0].is_contiguous()
    assert torch.equal(span_advantages(*turned), span_advantages(rewards, values, partition))
    row = span_advantages(rewards[:1].expand(6, 5), values[:1].expand(6, 5), partition)
    assert torch.equal(row[:1], span_advantages(rewards[:1], values[:1], partition[:1]))


@pytest.mark.processes
def test_without_numba_plain_torch_gives_the_same():
    script = (
        "import sys; sys.modules['numba'] = None\n"
        "import torch; from spanwise import spans; from spanwise.advantages import *\n"
        "mask = torch.tensor([[True, True, False, True]]); v = torch.tensor([[.5, .25, 9, .75]])\n"
        "s = spans.by_probability(torch.tensor([[.9, .1, .9, .9]]).log(), mask)\n"
        "print(span_advantages(v * 0, v, s, lam=.5).tolist(), spans.span_means(v, s).tolist())\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    # Span 0 is token 0, span 1 the other two. A_3 = -.75; A_1 = .75 - .25 - .75 = -.25;
    # A_0 = .25 - .5 + .5 * -.25 = -.375. Means: .5, then (.25 + .75) / 2.
    assert run.stdout.strip() == "[[-0.375, -0.25, 0.0, -0.75]] [[0.5, 0.5, 0.0, 0.5]]"


def test_no_kernel_while_torch_compiles(monkeypatch):
    assert kernels.kernels_for(torch.zeros(1)) is not None
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert kernels.kernels_for(torch.zeros(1)) is None
    monkeypatch.undo()
    assert kernels.kernels_for(torch.zeros(1, device="meta")) is None
