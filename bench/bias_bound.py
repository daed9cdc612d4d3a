"""How biased SAE's advantages are beside the bound of Theorem 4.1, on the chain task.

    python -m bench.bias_bound [--prompts 8] [--rollouts 512]

The base model answers a few questions of one length many times. The rollouts are then taken for
the whole policy: the value of a prefix is the mean outcome of the rollouts that begin with it,
which is exact, with no continuation sampled. The critic is that value plus an error of exactly
``alpha * e^((T - t) / beta)``, and the credit is that of ``span_advantages`` over segments of M
tokens. Writes ``bench/results/bias_bound.json`` and ``docs/pictures/bias_bound.svg``
(arXiv 2601.07320).
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from bench.record import RESULTS, save
from spanwise import spans
from spanwise.advantages import span_advantages
from spanwise.batch import Batch
from spanwise.envs.chain import ChainSums
from spanwise.models.loading import Model
from spanwise.rollout import Chains, RolloutContext, run_async
from spanwise.samplers.embedded.engine import TransformersEngine

PICTURE = Path(__file__).parent.parent / "docs" / "pictures" / "bias_bound.svg"
ALPHA, BETA, LAM = 0.01, 20.0, 0.95
SEGMENTS = (1, 2, 4, 8, 16, 32, 64)
NUMBERS = 7
"""Length of the questions: six steps, of which the model gives up many at the first."""

Signs = Literal["opposed", "alike"]
"""Signs of the critic's errors: that of the prompt's value against all others, which is the worst
there is, or one sign everywhere."""


def bound(length: float, horizon: int, *, alpha: float, beta: float, lam: float) -> float:
    """The bound of Theorem 4.1 on the bias of the first advantage.

        alpha e^(T / beta) [1 + (1 - lam) / (e^(M / beta) - lam)]

    ``length`` is M, the tokens of a segment, ``horizon`` T, those of the longest trajectory, and
    ``alpha`` and ``beta`` are those of the critic's largest error at t, alpha e^((T - t) / beta).

    Example:
      >>> round(bound(8, 44, alpha=0.03, beta=20, lam=0.95), 4)
      0.2957
    """
    floor = alpha * math.exp(horizon / beta)
    return floor * (1 + (1 - lam) / (math.exp(length / beta) - lam))


def exact_values(batch: Batch) -> Tensor:
    """``[N, T]`` float64: the mean return of the rollouts that share all before the token."""
    found: dict[tuple[int, ...], list[float]] = defaultdict(list)
    prefixes = [
        (i, t, tuple(row[:t]))
        for i, row in enumerate(batch.tokens.tolist())
        for t in batch.mask[i].nonzero().flatten().tolist()
    ]
    returns = batch.returns.tolist()
    for i, _, prefix in prefixes:
        found[prefix].append(returns[i])
    values = torch.zeros(batch.mask.shape, dtype=torch.float64)
    for i, t, prefix in prefixes:
        values[i, t] = sum(found[prefix]) / len(found[prefix])
    return values


def errors(mask: Tensor, horizon: int, signs: Signs, *, alpha: float, beta: float) -> Tensor:
    """``[N, T]`` float64: the critic's error before each model token."""
    place = mask.cumsum(1) - 1
    size = alpha * ((horizon - place.double()) / beta).exp()
    against = (place == 0) & (signs == "opposed")
    return torch.where(mask, torch.where(against, -size, size), 0)


def biases(batch: Batch, values: Tensor, error: Tensor, length: int, lam: float) -> Tensor:
    """``[N]`` the first advantage of each row, less the true one."""
    advantages = span_advantages(
        batch.rewards_by_token.double(),
        values + error,
        spans.fixed_length(batch.mask, length),
        lam=lam,
    )
    # The true advantage of the first token: what the state after it is worth, less the prompt.
    truth = span_advantages(
        batch.rewards_by_token.double(), values, spans.by_token(batch.mask), lam=0.0
    )
    first = batch.mask & (batch.mask.cumsum(1) == 1)
    return (advantages - truth)[first]


def rows_of(batch: Batch, *, alpha: float, beta: float, lam: float) -> list[dict[str, Any]]:
    """For each length of segment the bound, the measured bias under errors of either kind, and the
    standard deviation of the advantage about the true one, with a critic without error.
    """
    values, horizon = exact_values(batch), int(batch.mask.sum(1).max())
    rows: list[dict[str, Any]] = []
    for length in SEGMENTS:
        figures = {"bound": bound(length, horizon, alpha=alpha, beta=beta, lam=lam)}
        for signs in ("opposed", "alike"):
            error = errors(batch.mask, horizon, signs, alpha=alpha, beta=beta)
            figures[signs] = abs(float(biases(batch, values, error, length, lam).mean()))
        spread = biases(batch, values, torch.zeros_like(values), length, lam)
        figures["deviation"] = float(spread.std(correction=0))
        rows.append({"length": length, **{name: round(x, 6) for name, x in figures.items()}})
    return rows


def rolled_out(num_prompts: int, num_rollouts: int) -> Batch:
    """Answers of the base model to questions of one length."""
    env, model = ChainSums(min_numbers=NUMBERS, max_numbers=NUMBERS), Model(path="chain_base")
    tokenizer = model.load_tokenizer()
    sampler = TransformersEngine().build(model.load(), tokenizer)
    context = RolloutContext(env=env, sampler=sampler, tokenizer=tokenizer, seed=0)
    rollout = Chains(num_chains=num_rollouts, max_turn_tokens=128, max_response_tokens=128)
    tasks = env.tasks("dev")[:num_prompts]
    return Batch.from_trees([run_async(rollout(context, task, step=0)) for task in tasks])


@dataclass(frozen=True)
class Plot:
    """Axes in SVG: lengths of segments, logarithmic, and biases from 0 to the top."""

    longest: float
    top: float
    left: float = 64
    right: float = 700
    upper: float = 24
    lower: float = 330

    def at(self, length: float, bias: float) -> tuple[float, float]:
        share = math.log(length) / math.log(self.longest)
        x = self.left + share * (self.right - self.left)
        return round(x, 1), round(self.lower - bias / self.top * (self.lower - self.upper), 1)

    def curve(self, biases: Mapping[float, float], colour: str, dash: str = "none") -> str:
        points = " ".join("{},{}".format(*self.at(*each)) for each in biases.items())
        style = f'stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"'
        return f'<polyline points="{points}" fill="none" {style}/>'

    def dots(self, biases: Mapping[float, float], colour: str) -> list[str]:
        places = [self.at(*each) for each in biases.items()]
        circles = [f'<circle cx="{x}" cy="{y}" r="4" fill="{colour}"/>' for x, y in places]
        return [self.curve(biases, colour, "1 3"), *circles]

    def axes(self, lengths: Sequence[float]) -> list[str]:
        ticks = [(self.at(m, 0)[0], self.lower + 18, f"{m:g}", "middle") for m in lengths]
        heights = [self.top * share / 4 for share in range(5)]
        ticks += [(self.left - 8, self.at(1, h)[1] + 4, f"{h:.2f}", "end") for h in heights]
        ticks.append(
            ((self.left + self.right) / 2, self.lower + 38, "M, tokens a segment", "middle")
        )
        line = f'<path d="M{self.left},{self.upper}V{self.lower}H{self.right}" fill="none" '
        return [line + 'stroke="#444"/>', *(text(*tick) for tick in ticks)]


def text(x: float, y: float, words: str, anchor: str = "start", colour: str = "#444") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{colour}">{words}</text>'


def picture(result: Mapping[str, Any]) -> str:
    """The figure as SVG."""
    rows: Sequence[Mapping[str, float]] = result["rows"]
    settings = {name: result[name] for name in ("alpha", "beta", "lam")}
    plot = Plot(longest=rows[-1]["length"], top=1.1 * rows[0]["bound"])
    fine = [2 ** (i / 8) for i in range(8 * (len(rows) - 1) + 1)]
    bounds = {m: bound(m, result["horizon"], **settings) for m in fine}
    floor = result["alpha"] * math.exp(result["horizon"] / result["beta"])
    red, blue, grey, black = "#b4442c", "#1f5fa8", "#7a7a7a", "#444"
    legend = (
        ("bound of Theorem 4.1", red),
        ("measured, the prompt's error opposed to the others", blue),
        ("measured, all errors alike", grey),
        ("dotted: the floor, α e^(T/β)", black),
        ("dashed: if it were proportional to 1/M", black),
    )
    return "\n".join(
        [
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 740 380" '
            'font-family="sans-serif" font-size="13">',
            '<rect width="740" height="380" fill="#fff"/>',
            text(64, 16, "bias of the first advantage, absolute"),
            *plot.axes([row["length"] for row in rows]),
            plot.curve({fine[0]: floor, fine[-1]: floor}, black, "2 4"),
            plot.curve({m: bounds[1.0] / m for m in fine}, black, "6 5"),
            plot.curve(bounds, red),
            *plot.dots({row["length"]: row["opposed"] for row in rows}, blue),
            *plot.dots({row["length"]: row["alike"] for row in rows}, grey),
            *(text(390, 200 + 18 * i, words, colour=c) for i, (words, c) in enumerate(legend)),
            "</svg>\n",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--rollouts", type=int, default=512, help="of each prompt")
    options = parser.parse_args()
    batch = rolled_out(options.prompts, options.rollouts)
    settings = {"alpha": ALPHA, "beta": BETA, "lam": LAM}
    lengths = batch.mask.sum(1)
    rows = rows_of(batch, **settings)
    more = {
        "horizon": int(lengths.max()),
        "token_counts": {int(n): int((lengths == n).sum()) for n in lengths.unique()},
        "reward": round(float(batch.returns.mean()), 4),
    }
    save("bias_bound", rows, prompts=options.prompts, rollouts=options.rollouts, **settings, **more)
    for row in rows:
        print(row)
    result = json.loads((RESULTS / "bias_bound.json").read_text(encoding="utf-8"))
    PICTURE.write_text(picture(result), encoding="utf-8")


if __name__ == "__main__":
    main()
