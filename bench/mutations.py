"""Faults made on purpose, and whether the tests notice: writes ``bench/results/mutations.json``.

Run ``python -m bench.mutations``. Each fault is one replacement in a copy of the sources, in
which the tests of that part are then run; a fault that no test notices ends the script with
an error. Faults in the compiled loops and in the plain torch forms are made apart, and the
tests run with the form that has the fault. Those of the Triton kernel need Triton, and are
left out without it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results" / "mutations.json"


@dataclass(frozen=True)
class Fault:
    """One replacement of text that occurs once in a file."""

    name: str
    file: str
    before: str
    after: str
    tests: str
    kernels: bool = True


SPANS, RECURRENCE, CPU = "spans.py", "advantages/recurrence.py", "kernels/cpu.py"
CUDA, CUDA_TESTS = "kernels/cuda.py", "tests/test_cuda_kernel.py"
SURROGATE, RATIO, AGGREGATE = "losses/surrogate.py", "losses/ratio.py", "losses/aggregate.py"
GROUP, TREE = "advantages/group.py", "advantages/tree.py"
ADVANTAGE_TESTS = "tests/advantages/test_span_advantages.py"
SURROGATE_TESTS = "tests/losses/test_surrogate.py tests/losses/test_aggregate.py"

FAULTS = (
    Fault(
        "the trace decays inside spans as well",
        CPU,
        "decay = gamma if span == next_span else at_boundary",
        "decay = at_boundary",
        ADVANTAGE_TESTS,
    ),
    Fault(
        "the next value is that of a masked token",
        CPU,
        "                row_out[t] = 0\n",
        "                row_out[t] = 0\n                next_value = np.float64(row_values[t])\n",
        ADVANTAGE_TESTS,
    ),
    Fault(
        "the discount is left off the next value",
        CPU,
        "reward - value + gamma * next_value",
        "reward - value + next_value",
        ADVANTAGE_TESTS,
    ),
    Fault(
        "an advantage is carried from row to row",
        CPU,
        "        advantage = 0.0\n",
        "        advantage = 0.0 if i == 0 else advantage\n",
        ADVANTAGE_TESTS,
    ),
    Fault(
        "a NaN reward goes unnoticed",
        CPU,
        "    if never_scored:\n",
        "    if never_scored and num_rows < 0:\n",
        ADVANTAGE_TESTS,
    ),
    Fault(
        "plain scan: the trace decays inside spans as well",
        RECURRENCE,
        "torch.where(same_span_NC, torch.full_like(at_boundary, gamma), at_boundary)",
        "torch.where(same_span_NC, at_boundary, at_boundary)",
        "tests/advantages/test_span_advantages.py",
        kernels=False,
    ),
    Fault(
        "plain scan: the bootstrap stands one token early",
        RECURRENCE,
        "last = (counts - 1).clamp(min=0)",
        "last = (counts - 2).clamp(min=0)",
        "tests/advantages/test_span_advantages.py",
        kernels=False,
    ),
    Fault(
        "GPU: the trace decays inside spans as well",
        CUDA,
        "decay = tl.where(span == next_span, gamma, at_boundary)",
        "decay = tl.where(span == next_span, at_boundary, at_boundary)",
        CUDA_TESTS,
    ),
    Fault(
        "GPU: the next value is that of a masked token",
        CUDA,
        "tl.where(own, value, later_value)",
        "value",
        CUDA_TESTS,
    ),
    Fault(
        "GPU: a chunk hands over no advantage",
        CUDA,
        "        advantage += decay * advantage_after\n",
        "",
        CUDA_TESTS,
    ),
    Fault(
        "GPU: a chunk hands over the span of its first place, masked or not",
        CUDA,
        "span_after = tl.sum(tl.where(first, next_span, 0), axis=0)",
        "span_after = tl.sum(tl.where(first, span, 0), axis=0)",
        CUDA_TESTS,
    ),
    Fault(
        "GPU: the scan composes in the wrong order",
        CUDA,
        "total + decay * later_sum",
        "later_sum + later_decay * total",
        CUDA_TESTS,
    ),
    Fault(
        "GPU: gamma reaches the kernel in float32",
        CUDA,
        "gamma * lam]).to(out.dtype)",
        "gamma * lam]).float().to(out.dtype)",
        CUDA_TESTS,
    ),
    Fault(
        "returns leave out the value",
        RECURRENCE,
        "advantages + values.detach(), 0)",
        "advantages, 0)",
        "tests/advantages/test_span_advantages.py",
    ),
    Fault(
        "the adaptive lambda grows negative on short rows",
        RECURRENCE,
        "(1 - 1 / (alpha * lengths)).clamp(min=0)",
        "(1 - 1 / (alpha * lengths))",
        "tests/advantages/test_span_advantages.py",
    ),
    Fault(
        "start and end of a boundary are swapped",
        SPANS,
        'return boundary == "end"',
        'return boundary == "start"',
        "tests/test_spans.py",
    ),
    Fault(
        "a token at the threshold is below it",
        CPU,
        "(score < limit)",
        "(score <= limit)",
        "tests/test_spans.py",
    ),
    Fault(
        "a span goes on after its delimiter",
        SPANS,
        "marked.cumsum(1) - marked.to(torch.int64), -1)",
        "marked.cumsum(1), -1)",
        "tests/test_spans.py",
    ),
    Fault(
        "masked tokens are counted in fixed lengths",
        SPANS,
        "torch.div(mask.cumsum(1) - 1,",
        "torch.div(torch.ones_like(mask).cumsum(1) - 1,",
        "tests/test_spans.py",
    ),
    Fault(
        "a common refinement keeps the boundaries of one side only",
        SPANS,
        "_numbered(_opens(a) | _opens(b), mask)",
        "_numbered(_opens(a), mask)",
        "tests/test_spans.py",
    ),
    Fault(
        "a span's mean is divided by the whole row",
        CPU,
        "sums[k] /= max(1, counts[k])",
        "sums[k] /= num_places",
        "tests/test_spans.py",
    ),
    Fault(
        "the gradient of a mean is its sum",
        SPANS,
        "return span_means(gradients[0], spans), None",
        "return span_means(gradients[0], spans) * span_lengths(spans), None",
        "tests/test_spans.py",
    ),
    Fault(
        "the token-gradient form has the gradient of the mean",
        RATIO,
        "means = span_means(log_ratios.detach(), spans)",
        "means = span_means(log_ratios, spans)",
        "tests/losses/test_ratio.py",
    ),
    Fault(
        "the mean of ratios instead of the ratio of means",
        RATIO,
        "span_means(log_ratios, spans).clamp(max=max_log_ratio).exp()",
        "span_means(log_ratios.clamp(max=max_log_ratio).exp(), spans)",
        "tests/losses/test_ratio.py",
    ),
    Fault(
        "a bad token is clipped above the range instead of below",
        CPU,
        "low = (ratio < least) & (advantage < 0)",
        "low = (ratio > most) & (advantage < 0)",
        SURROGATE_TESTS,
    ),
    Fault(
        "a good token is not clipped",
        CPU,
        "used = least if low else (most if high else ratio)",
        "used = least if low else ratio",
        SURROGATE_TESTS,
    ),
    Fault(
        "the dual clip holds for good tokens",
        CPU,
        "bounded = (advantage < 0) & (used > bound)",
        "bounded = used > bound",
        SURROGATE_TESTS,
    ),
    Fault(
        "a clipped token keeps its gradient",
        CPU,
        "slopes[i, t] = 0 if low | high | bounded else -advantage",
        "slopes[i, t] = -advantage",
        SURROGATE_TESTS,
    ),
    Fault(
        "a span counts for every token of it that is cut",
        CPU,
        "row[5] += counts[1, k] / length",
        "row[5] += counts[1, k]",
        SURROGATE_TESTS,
    ),
    Fault(
        "plain torch: a good token is not clipped",
        SURROGATE,
        "cut = low | high\n",
        "cut = low\n",
        SURROGATE_TESTS,
        kernels=False,
    ),
    Fault(
        "plain torch: what stands at masked places reaches the loss",
        SURROGATE,
        "losses = torch.where(mask, -used * advantages, 0)",
        "losses = -used * advantages",
        SURROGATE_TESTS,
        kernels=False,
    ),
    Fault(
        "the gradient ignores what the loss is multiplied by",
        SURROGATE,
        "return gradients[0] * slopes,",
        "return slopes,",
        SURROGATE_TESTS,
    ),
    Fault(
        "the mean over samples counts empty rows",
        AGGREGATE,
        "return totals.sum() / _denominator(num_samples, mask.any(1).sum())",
        "return totals.sum() / _denominator(num_samples, torch.tensor(len(mask)))",
        "tests/losses/test_aggregate.py",
    ),
    Fault(
        "a part of an update is divided by its own count",
        AGGREGATE,
        "count = counted if given is None else torch.as_tensor(given, device=counted.device)",
        "count = counted",
        "tests/losses/test_aggregate.py",
    ),
    Fault(
        "the deviation of a group is the population one",
        GROUP,
        "std = (squares / (counts - 1).clamp(min=1)).sqrt()[group]",
        "std = (squares / counts).sqrt()[group]",
        "tests/advantages/test_group_advantages.py",
    ),
    Fault(
        "leave-one-out keeps the row's own reward",
        GROUP,
        "(centred * size / (size - 1).clamp(min=1))",
        "(centred * size / size)",
        "tests/advantages/test_group_advantages.py",
    ),
    Fault(
        "siblings are weighted against their entropy",
        TREE,
        "(entropies - most[family]).exp()",
        "(most[family] - entropies).exp()",
        "tests/advantages/test_tree_credit.py",
    ),
    Fault(
        "a turn's advantage is over the root instead of its parent",
        TREE,
        "torch.where(parents >= 0, parents, own), parents, leaves)",
        "_depths_and_roots(parents)[1], parents, leaves)",
        "tests/advantages/test_tree_credit.py",
    ),
    Fault(
        "k3 estimates the other direction",
        "losses/kl.py",
        "torch.expm1(-log_ratios) + log_ratios",
        "torch.expm1(log_ratios) - log_ratios",
        "tests/losses/test_kl.py",
    ),
    Fault(
        "the critic may be rewarded for a large move",
        "losses/value.py",
        "torch.maximum(losses, (near - returns)",
        "torch.minimum(losses, (near - returns)",
        "tests/losses/test_value_loss.py",
    ),
    Fault(
        "a shared turn is trained in its last branch",
        "losses/weights.py",
        'first.scatter_reduce_(0, present, rows, "amin")',
        'first.scatter_reduce_(0, present, rows, "amax", include_self=False)',
        "tests/losses/test_weights.py",
    ),
    Fault(
        "the gradient of a log-prob misses the softmax",
        "losses/logprobs.py",
        "            gradient *= -of_logprobs\n",
        "            gradient *= 0\n",
        "tests/losses/test_logprobs.py",
    ),
    Fault(
        "the gradient of an entropy misses the entropy itself",
        "losses/logprobs.py",
        "logprobs.clamp_(min=LEAST).add_(entropies).mul_(-of_entropies)",
        "logprobs.clamp_(min=LEAST).mul_(-of_entropies)",
        "tests/losses/test_logprobs.py",
    ),
)


def outcome(fault: Fault, folder: Path) -> dict[str, str | bool]:
    """Whether the tests fail with the fault, and the first that does."""
    path = folder / "spanwise" / fault.file
    sound = path.read_text(encoding="utf-8")
    if sound.count(fault.before) != 1:
        raise SystemExit(f"{fault.name}: the text to replace must occur once in {fault.file}")
    path.write_text(sound.replace(fault.before, fault.after), encoding="utf-8")
    try:
        run = run_tests(fault.tests, folder, kernels=fault.kernels)
    finally:
        path.write_text(sound, encoding="utf-8")
    first = re.search(r"^(?:FAILED|ERROR) (\S+)", run.stdout, re.MULTILINE)
    return {
        "fault": fault.name,
        "file": f"spanwise/{fault.file}",
        "before": fault.before.strip(),
        "after": fault.after.strip(),
        "caught": run.returncode == 1,  # 1: tests failed; above: they could not be run
        "first_failure": first.group(1) if first else "",
    }


def run_tests(tests: str, folder: Path, *, kernels: bool) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    environment = os.environ | {
        "PYTHONPATH": str(folder),
        "PYTHONDONTWRITEBYTECODE": "1",
        "SPANWISE_KERNELS": str(int(kernels)),
    }
    return subprocess.run(
        [*command, *tests.split()], cwd=folder, env=environment, capture_output=True, text=True
    )


def main() -> None:
    faults = FAULTS
    if importlib.util.find_spec("triton") is None:
        print("Triton is not installed: the faults of its kernel are left out")
        faults = tuple(fault for fault in FAULTS if fault.file != CUDA)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("spanwise", "tests"):
            left_out = shutil.ignore_patterns("__pycache__", "assets")
            shutil.copytree(ROOT / part, folder / part, ignore=left_out)
        shutil.copy(ROOT / "pyproject.toml", folder)
        every = " ".join(sorted({f for fault in faults for f in fault.tests.split()}))
        if run_tests(every, folder, kernels=True).returncode != 0:
            raise SystemExit("the tests fail without a fault")
        rows = []
        for fault in faults:
            rows.append(outcome(fault, folder))
            mark = "caught  " if rows[-1]["caught"] else "MISSED  "
            print(mark, fault.name, "|", rows[-1]["first_failure"], flush=True)
    result = {
        "name": "mutations",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "caught": sum(bool(row["caught"]) for row in rows),
        "faults": len(rows),
        "rows": rows,
    }
    RESULTS.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if result["caught"] < result["faults"]:
        raise SystemExit("some faults went unnoticed")


if __name__ == "__main__":
    main()
