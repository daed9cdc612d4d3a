"""The properties of a sampler."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from spanwise.samplers.base import Completion, Request, Sampler, Sampling
from spanwise.testing.assertions import require

PROMPTS = ((1, 2, 3), (3, 1), (2, 2, 1, 3, 1, 2))
ROUNDING = 1e-4
"""Tolerance of a log-prob, by which engines in float32 may differ between batches."""

AT_1 = Sampling()
COLDER = Sampling(temperature=0.7, top_p=0.9)

Drawn = tuple[int, float]
"""A token and the log of the probability that it is said to have been drawn with."""


def check_sampler(
    sampler: Sampler,
    *,
    prompts: Sequence[Sequence[int]] = PROMPTS,
    max_tokens: int = 6,
    stop: Sequence[str] = (),
    decode: Callable[[Sequence[int]], str] | None = None,
    num_draws: int = 300,
) -> None:
    """Check an engine: its form, its seeds, and that it draws by the log-probs it reports.

    - a completion has 1 to ``max_tokens`` tokens and as many finite log-probs of both kinds,
      none above 0; the finish is ``length`` exactly if it was cut, and without stop strings
      never ``stop``;
    - the seed alone decides: a request gives the same turn alone, beside others, in another
      order and once more; at temperature 0 the seed decides nothing;
    - ``engine_logprobs`` are those of temperature 1 however a token was drawn; there, where nothing
      is cut off, ``sampling_logprobs`` are the same;
    - over ``num_draws`` seeds tokens are drawn as often as their ``sampling_logprobs`` say (by
      chi-square tests, each of which fails a right one once in 30,000 times), and a token has
      the same log-prob whichever seed drew it: first tokens, colder ones too, and those after
      a token that was drawn, which are those of a prompt that ends with that token;
    - with ``stop`` and ``decode``: the last token, and none before it, completes a stop
      string if and only if the finish is ``stop``.

    Args:
      sampler: Asked for three times ``num_draws`` turns of one or two tokens and about 60
        longer ones.
      prompts: Token ids that are in its vocabulary; more than one prompt.
      max_tokens: Of a turn.
      stop: Strings at which turns are to end.
      decode: Token ids to text, as the sampler does it; needed with ``stop``.
      num_draws: More of them notice smaller errors of the log-probs.

    Raises:
      AssertionError: one line that says which property does not hold.
      ValueError: if there is only one prompt, or ``stop`` without ``decode``.
    """
    if len(prompts) < 2 or (stop and decode is None):
        raise ValueError("check_sampler needs two prompts or more, and decode where stop is given")
    asyncio.run(_check(sampler, prompts, max_tokens, tuple(stop), decode, num_draws))


async def _check(
    sampler: Sampler,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    stop: tuple[str, ...],
    decode: Callable[[Sequence[int]], str] | None,
    num_draws: int,
) -> None:
    requests = [
        Request(prompt=tuple(prompt), seed=seed, max_tokens=max_tokens, stop=stop, sampling=how)
        for prompt in prompts
        for seed in (0, 1)
        for how in (AT_1, Sampling(temperature=0.0), COLDER)
    ]
    completions = [await sampler.sample(request) for request in requests]
    for request, completion in zip(requests, completions, strict=True):
        _check_form(request, completion)
        _check_stop(request, completion, decode)
    await _check_company(sampler, requests, completions)
    for first, second in zip(completions[1::6], completions[4::6], strict=True):
        require(
            first.tokens == second.tokens, "at temperature 0 a turn must not depend on its seed"
        )
    await _check_distribution(sampler, tuple(prompts[0]), num_draws)


def _check_form(request: Request, completion: Completion) -> None:
    require(
        isinstance(completion, Completion),
        f"sample() gives a Completion, got {type(completion).__name__}",
    )
    tokens, limit = completion.tokens, request.max_tokens
    plain = isinstance(tokens, tuple) and all(isinstance(token, int) for token in tokens)
    require(plain, f"the tokens of a turn are a tuple of int, got {tokens!r:.60}")
    require(
        1 <= len(tokens) <= limit, f"a turn has 1 to max_tokens = {limit} tokens, got {len(tokens)}"
    )
    for name in ("engine_logprobs", "sampling_logprobs"):
        given: tuple[float, ...] = getattr(completion, name)
        require(
            len(given) == len(tokens), f"{len(tokens)} tokens have {len(given)} {name}, not as many"
        )
        fine = all(math.isfinite(x) and x <= ROUNDING for x in given)
        require(fine, f"{name} must be finite and not above 0, got {given}")
    require(
        completion.finish in ("stop", "eos", "length"),
        f"finish is stop, eos or length, got {completion.finish!r}",
    )
    require(
        completion.finish != "length" or len(tokens) == limit,
        f"a turn of {len(tokens)} tokens was not cut by max_tokens = {limit}, "
        "but its finish is length",
    )
    require(
        bool(request.stop) or completion.finish != "stop",
        "without stop strings no turn can finish with stop",
    )
    if request.sampling == AT_1:
        pairs = zip(completion.engine_logprobs, completion.sampling_logprobs, strict=True)
        require(
            all(abs(a - b) <= ROUNDING for a, b in pairs),
            "at temperature 1, with nothing cut off, logprobs and sampling_logprobs must agree",
        )


def _check_stop(
    request: Request, completion: Completion, decode: Callable[[Sequence[int]], str] | None
) -> None:
    if not request.stop or decode is None:
        return
    stopped = [
        any(string in decode(completion.tokens[:length]) for string in request.stop)
        for length in range(1, len(completion.tokens) + 1)
    ]
    require(not any(stopped[:-1]), "a turn must end with the token that completes a stop string")
    require(
        stopped[-1] == (completion.finish == "stop"),
        "the finish must be stop exactly if the last token completes a stop string, "
        f"got {completion.finish!r}",
    )


async def _check_company(
    sampler: Sampler, requests: Sequence[Request], completions: Sequence[Completion]
) -> None:
    """The same requests all at once, and once more in reverse."""
    together = await asyncio.gather(*(sampler.sample(r) for r in requests))
    reverse = await asyncio.gather(*(sampler.sample(r) for r in reversed(requests)))
    for alone, *others in zip(completions, together, reversed(reverse), strict=True):
        for other in others:
            require(
                alone.tokens == other.tokens and alone.finish == other.finish,
                "a turn must not depend on what else is sampled: the seed alone decides",
            )
            pairs = zip(alone.engine_logprobs, other.engine_logprobs, strict=True)
            require(
                all(abs(a - b) <= ROUNDING for a, b in pairs),
                "log-probs must not depend on what else is sampled",
            )


async def _check_distribution(sampler: Sampler, prompt: tuple[int, ...], num_draws: int) -> None:
    """First and second tokens over many seeds, against the log-probs they came with."""

    async def turns(after: tuple[int, ...], length: int, how: Sampling) -> list[Completion]:
        asked = [
            Request(prompt=after, seed=seed, max_tokens=length, sampling=how)
            for seed in range(num_draws)
        ]
        done = await asyncio.gather(*(sampler.sample(request) for request in asked))
        for request, completion in zip(asked, done, strict=True):
            _check_form(request, completion)
        return done

    pairs = await turns(prompt, 2, AT_1)
    of_first = _checked_frequencies("token", ((c.tokens[0], c.sampling_logprobs[0]) for c in pairs))
    _check_colder(await turns(prompt, 1, COLDER), of_first)
    newest = Counter(c.tokens[0] for c in pairs if len(c.tokens) == 2)
    if not newest:
        return
    first = max(newest, key=newest.__getitem__)
    seconds = [c for c in pairs if len(c.tokens) == 2 and c.tokens[0] == first]
    of_second = _checked_frequencies(
        f"after token {first} token", ((c.tokens[1], c.sampling_logprobs[1]) for c in seconds)
    )
    for completion in await turns((*prompt, first), 1, AT_1):
        token, logprob = completion.tokens[0], completion.engine_logprobs[0]
        known = of_second.get(token, logprob)
        require(
            abs(known - logprob) <= 10 * ROUNDING,  # other kernels: a cache against a prompt
            f"token {token} has log-prob {known:.6g} after token {first} was drawn, and "
            f"{logprob:.6g} where the prompt ends with token {first}",
        )


def _check_colder(turns: Sequence[Completion], at_1: Mapping[int, float]) -> None:
    """Turns of one token, against the log-probs at temperature 1 of those tokens."""
    draws = [(c.tokens[0], c.engine_logprobs[0], c.sampling_logprobs[0]) for c in turns]
    _checked_frequencies(
        "at temperature 0.7 and top_p 0.9 token", ((token, drawn) for token, _, drawn in draws)
    )
    _, reference, reference_drawn = draws[0]
    for token, logprob, drawn in draws:
        known = at_1.get(token, logprob)
        require(
            abs(known - logprob) <= ROUNDING,
            "logprobs must be those of temperature 1 whatever a token was drawn at: token "
            f"{token} has {known:.6g} there and {logprob:.6g} at temperature 0.7",
        )
        # What top_p cuts off changes the sum alone, which is the same for both tokens.
        expected = reference_drawn + (logprob - reference) / COLDER.temperature
        require(
            abs(drawn - expected) <= 10 * ROUNDING,
            "sampling_logprobs must be those of the temperature drawn at: at 0.7 token "
            f"{token} has {drawn:.6g}, and by its log-prob and another token's {expected:.6g}",
        )


def _checked_frequencies(name: str, draws: Iterable[Drawn]) -> dict[int, float]:
    """The log-prob of each token drawn, once they are known to be drawn as often as it says."""
    counts: Counter[int] = Counter()
    logprobs: dict[int, float] = {}
    for token, logprob in draws:
        counts[token] += 1
        known = logprobs.setdefault(token, logprob)
        require(
            abs(known - logprob) <= ROUNDING,
            f"{name} {token} has log-prob {known:.6g} for one seed and {logprob:.6g} for another",
        )
    num_draws = counts.total()
    probabilities = {token: math.exp(logprob) for token, logprob in logprobs.items()}
    total = sum(probabilities.values())
    require(
        total < 1 + 1e-3,
        f"the probabilities of what was drawn sum to {total:.4g}, not to 1 at most ({name}s "
        f"{sorted(probabilities)[:8]})",
    )
    # Pearson's test: tokens expected fewer than 5 times are one class with those never seen.
    common = {token: num_draws * p for token, p in probabilities.items() if num_draws * p >= 5}
    classes = [(counts[token], expected, str(token)) for token, expected in common.items()]
    rest = num_draws - sum(common.values())
    if rest >= 5:
        rare = num_draws - sum(counts[token] for token in common)
        classes.append((rare, rest, "(any rare one)"))
    if len(classes) < 2:
        return logprobs
    misses = [(count - expected) ** 2 / expected for count, expected, _ in classes]
    count, expected, token = classes[misses.index(max(misses))]
    require(
        sum(misses) <= _chi_square_limit(len(classes) - 1),
        f"over {num_draws} draws {name} {token} was drawn {count} times, and its log-prob says "
        f"{expected:.1f}",
    )
    return logprobs


def _chi_square_limit(freedom: int) -> float:
    """The bound that a chi-square variable exceeds once in 30,000 times (Wilson and Hilferty)."""
    spread = 2 / (9 * freedom)
    return freedom * (1 - spread + 4 * math.sqrt(spread)) ** 3
