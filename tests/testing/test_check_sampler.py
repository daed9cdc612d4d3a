"""``check_sampler`` passes a small correct engine and fails each way of breaking it."""

import math
import random
from dataclasses import replace

import pytest
import torch

from spanwise.samplers.base import Completion, Sampler, Sampling
from spanwise.samplers.embedded.engine import TransformersEngine
from spanwise.testing import check_sampler
from tests.tiny import qwen3

STOP = ("ba", "c")


def decode(tokens):
    """Token 0 ends a turn; 1 to 5 are the letters a to e."""
    return "".join(chr(96 + t) for t in tokens if t)


class Letters(Sampler):
    """A correct engine over six tokens: the newest token decides what is likely next."""

    def weights(self, sequence):
        return [1.0 + ((7 * sequence[-1] + 3 * token) % 5) for token in range(6)]

    async def sample(self, request):
        draw = random.Random(repr((request.seed, request.prompt)))
        tokens, logprobs, sampling_logprobs = [], [], []
        finish = "length"
        while len(tokens) < request.max_tokens:
            token, logprob, drawn = self.step(request, (*request.prompt, *tokens), draw)
            tokens.append(token)
            logprobs.append(logprob)
            sampling_logprobs.append(drawn)
            if token == 0:
                finish = "eos"
            elif any(string in decode(tokens) for string in request.stop):
                finish = "stop"
            if finish != "length":
                break
        return Completion(
            tokens=tuple(tokens),
            engine_logprobs=tuple(logprobs),
            sampling_logprobs=tuple(sampling_logprobs),
            finish=finish,
        )

    def step(self, request, sequence, draw):
        """A token, its log-prob, and that under the distribution it was drawn from."""
        weights = self.weights(sequence)
        temperature = request.sampling.temperature
        at_1 = [math.log(w / sum(weights)) for w in weights]
        if temperature == 0:
            token = max(range(6), key=weights.__getitem__)
            return token, at_1[token], 0.0
        powers = [w ** (1 / temperature) for w in weights]
        token = draw.choices(range(6), powers)[0]
        return token, at_1[token], math.log(powers[token] / sum(powers))

    def update_weights(self, model):
        pass


class Changed(Letters):
    """A correct completion, changed afterwards by a function."""

    def __init__(self, change):
        self.change = change

    async def sample(self, request):
        return self.change(request, await super().sample(request))


class Unseeded(Letters):
    def __init__(self):
        self.draw = random.Random(0)

    def step(self, request, sequence, draw):
        return super().step(request, sequence, self.draw)


class SharedGenerator(Letters):
    """Reproducible alone; beside others the draws depend on who comes first."""

    under_way = 0

    async def sample(self, request):
        SharedGenerator.under_way += 1
        seed = request.seed + SharedGenerator.under_way // 20
        return await super().sample(replace(request, seed=seed))


class SeededGreedy(Letters):
    def step(self, request, sequence, draw):
        if request.sampling.temperature == 0:
            request = replace(request, sampling=Sampling())
        return super().step(request, sequence, draw)


class OtherTemperature(Letters):
    """Draws at temperature 0.5 where 1 was asked for, and reports the log-probs of 1."""

    def step(self, request, sequence, draw):
        if request.sampling != Sampling():
            return super().step(request, sequence, draw)
        cold = replace(request, sampling=Sampling(temperature=0.5))
        token, logprob, _ = super().step(cold, sequence, draw)
        return token, logprob, logprob


class OneToken(Letters):
    """Always the same first token."""

    def step(self, request, sequence, draw):
        return super().step(request, sequence, random.Random(0))


class ForgetsThePrompt(Letters):
    """Sees nothing but what it drew itself."""

    def step(self, request, sequence, draw):
        return super().step(request, sequence[len(request.prompt) :] or (1,), draw)


class StaleCache(Letters):
    """From the second token on it has not yet seen the newest one."""

    def step(self, request, sequence, draw):
        seen = sequence[:-1] if len(sequence) > len(request.prompt) else sequence
        return super().step(request, seen, draw)


class UniformLater(Letters):
    """From the second token on it draws all alike, and reports the log-probs of the model."""

    def step(self, request, sequence, draw):
        token, logprob, drawn = super().step(request, sequence, draw)
        if len(sequence) == len(request.prompt) or request.sampling != Sampling():
            return token, logprob, drawn
        token = draw.randrange(6)
        weights = self.weights(sequence)
        logprob = math.log(weights[token] / sum(weights))
        return token, logprob, logprob


class OneLogprob(Letters):
    """Reports one log-prob twice: ``kept`` says which of the two."""

    def __init__(self, kept):
        self.kept = kept

    def step(self, request, sequence, draw):
        found = super().step(request, sequence, draw)
        return found[0], found[self.kept], found[self.kept]


def shifted(request, completion):
    """Every token has the log-prob of the one after it."""
    moved = {
        name: (*getattr(completion, name)[1:], getattr(completion, name)[0])
        for name in ("engine_logprobs", "sampling_logprobs")
    }
    return replace(completion, **moved)


class Overshoots(Letters):
    """Goes on for a token after the stop string."""

    async def sample(self, request):
        done = await super().sample(request)
        if done.finish != "stop" or len(done.tokens) == request.max_tokens:
            return done
        extra = {
            name: (*getattr(done, name), -1.0) for name in ("engine_logprobs", "sampling_logprobs")
        }
        return replace(done, tokens=(*done.tokens, 3), **extra)


def test_a_correct_engine_passes():
    check_sampler(Letters())
    check_sampler(Letters(), stop=STOP, decode=decode, max_tokens=20)


def test_the_embedded_engine_passes():
    class NoText:
        eos_token_id = None

    torch.set_num_threads(1)
    check_sampler(TransformersEngine().build(qwen3(vocab=12), NoText()), max_tokens=4)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (Unseeded(), "the seed alone decides"),
        (SharedGenerator(), "the seed alone decides"),
        (SeededGreedy(), "at temperature 0"),
        (OtherTemperature(), "was drawn"),
        (OneToken(), "was drawn"),
        (ForgetsThePrompt(), "where the prompt ends with"),
        (StaleCache(), "where the prompt ends with"),
        (UniformLater(), r"after token \d token .* was drawn"),
        (OneLogprob(2), "logprobs must be those of temperature 1"),
        (OneLogprob(1), "sampling_logprobs must be those of the temperature drawn at"),
        (Changed(shifted), "for one seed and"),
        (Changed(lambda r, c: None), "gives a Completion, got NoneType"),
        (Changed(lambda r, c: replace(c, tokens=torch.tensor(c.tokens))), "a tuple of int"),
        (Changed(lambda r, c: replace(c, engine_logprobs=c.engine_logprobs[:-1])), "not as many"),
        (Changed(lambda r, c: replace(c, engine_logprobs=(math.nan,) * len(c.tokens))), "finite"),
        (
            Changed(lambda r, c: replace(c, engine_logprobs=tuple(-x for x in c.engine_logprobs))),
            "not above 0",
        ),
        (
            Changed(
                lambda r, c: replace(c, engine_logprobs=tuple(x - 0.1 for x in c.engine_logprobs))
            ),
            "must agree",
        ),
        (Changed(lambda r, c: replace(c, tokens=())), "1 to"),
        (Changed(lambda r, c: replace(c, finish="done")), "finish is stop, eos or length"),
        (Changed(lambda r, c: replace(c, finish="length")), "was not cut"),
        (Changed(lambda r, c: replace(c, finish="stop")), "without stop strings"),
    ],
)
def test_broken_engines_fail(broken, message):
    with pytest.raises(AssertionError, match=message):
        check_sampler(broken, num_draws=600)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (Overshoots(), "must end with the token that completes"),
        (
            Changed(lambda r, c: replace(c, finish="eos" if c.finish == "stop" else c.finish)),
            "exactly if",
        ),
    ],
)
def test_broken_stops_fail(broken, message):
    with pytest.raises(AssertionError, match=message):
        check_sampler(broken, stop=STOP, decode=decode, max_tokens=20)


def test_bad_input_is_one_clear_error():
    with pytest.raises(ValueError, match="two prompts"):
        check_sampler(Letters(), prompts=[(1,)])
    with pytest.raises(ValueError, match="decode"):
        check_sampler(Letters(), stop=STOP)
