"""Log-probs from hidden states in chunks beside the plain form that holds all logits.

``python -m bench.logprobs [--threads 2] [--rounds 3]`` writes ``bench/results/logprobs.json``:
seconds of a forward and backward pass over 8,192 tokens, a vocabulary of 151,936 and hidden
size 256, and the memory each form needs on top of its inputs. Every measurement has a
process of its own, for the peak of a process is never given back. The plain form takes
about 16 GB.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.record import save
from bench.timing import speed_row
from spanwise.models.logprobs import logprobs_and_entropies

VOCABULARY, HIDDEN = 151_936, 256


def full(hidden: Tensor, weight: Tensor, tokens: Tensor) -> Tensor:
    """All logits at once, in as little memory as autograd allows."""
    return (hidden @ weight.T).log_softmax(-1).gather(1, tokens[:, None]).squeeze(1)


def chunked(hidden: Tensor, weight: Tensor, tokens: Tensor) -> Tensor:
    return logprobs_and_entropies(hidden, weight, tokens)[0]


FORMS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"chunked": chunked, "full": full}


def inputs(num_tokens: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(num_tokens, HIDDEN, generator=generator)
    weight = torch.randn(VOCABULARY, HIDDEN, generator=generator) * 0.1
    tokens = torch.randint(0, VOCABULARY, (num_tokens,), generator=generator)
    factors = torch.randn(num_tokens, generator=generator)
    return hidden.requires_grad_(), weight.requires_grad_(), tokens, factors


def status_mb(field: str) -> float:
    """A memory figure of this process, in MB."""
    with open("/proc/self/status", encoding="ascii") as file:
        found = [line.split()[1] for line in file if line.startswith(field)]
    return int(found[0]) / 1024


def one_pass(form: str, num_tokens: int) -> dict[str, float]:
    """Seconds and peak memory of one forward and backward pass in this process."""
    hidden, weight, tokens, factors = inputs(num_tokens)
    FORMS[form](hidden[:8], weight, tokens[:8]).sum().backward()  # the libraries warm up
    hidden.grad = weight.grad = None
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")  # the peak counts from here
    before = status_mb("VmRSS")
    start = time.perf_counter()
    (FORMS[form](hidden, weight, tokens) * factors).sum().backward()
    return {"s": time.perf_counter() - start, "mb": status_mb("VmHWM") - before}


def check_equal() -> None:
    """Values and gradients of both forms, on fewer tokens."""
    found = []
    for form in FORMS.values():
        hidden, weight, tokens, factors = inputs(96)
        logprobs = form(hidden, weight, tokens)
        found.append((logprobs, *torch.autograd.grad((logprobs * factors).sum(), (hidden, weight))))
    for ours, peer in zip(*found, strict=True):
        torch.testing.assert_close(ours, peer, rtol=1e-4, atol=1e-4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--form", choices=FORMS, help="measure one pass and print it")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.form:
        print(json.dumps(one_pass(options.form, options.tokens)))
        return
    check_equal()
    found: dict[str, list[dict[str, float]]] = {form: [] for form in FORMS}
    for _ in range(options.rounds):
        for form in FORMS:
            found[form].append(measured(form, options.tokens, options.threads))
            print(form, found[form][-1], flush=True)
    case = f"{options.tokens} tokens x {VOCABULARY}, hidden {HIDDEN}"
    seconds = {form: [each["s"] for each in passes] for form, passes in found.items()}
    peaks = {form: max(each["mb"] for each in passes) for form, passes in found.items()}
    memory: dict[str, Any] = {
        "case": f"{case}, peak extra memory",
        "peer": "all logits at once",
        "ours_mb": round(peaks["chunked"]),
        "peer_mb": round(peaks["full"]),
        "ratio": float(f"{peaks['full'] / peaks['chunked']:.4g}"),
        "note": "gradients of the inputs are part of both",
    }
    print(memory)
    note = "ours gives entropies as well"
    save(
        "logprobs",
        [speed_row(case, "all logits at once", seconds["chunked"], seconds["full"], note), memory],
    )


def measured(form: str, num_tokens: int, threads: int) -> dict[str, float]:
    command = [sys.executable, "-m", "bench.logprobs", "--form", form]
    command += ["--tokens", str(num_tokens), "--threads", str(threads)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


if __name__ == "__main__":
    main()
