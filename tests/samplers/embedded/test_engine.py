from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import random
from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from spanwise.samplers.base import EngineError, Request, Sampling
from spanwise.samplers.embedded import engine as engine_module
from spanwise.samplers.embedded.engine import TransformersEngine

GREEDY = Sampling(temperature=0.0)


def prompts(n: int, *, seed: int = 0, low: int = 3, high: int = 40) -> list[tuple[int, ...]]:
    rng = random.Random(seed)
    return [tuple(rng.randrange(1, 261) for _ in range(rng.randrange(low, high))) for _ in range(n)]


def requests(n: int, **options) -> list[Request]:
    """Two siblings of each prompt, with lengths and settings of all kinds."""
    rng = random.Random(1)
    kinds = [Sampling(), Sampling(temperature=0.6), Sampling(top_p=0.8, top_k=30), GREEDY]
    return [
        Request(
            prompt=prompts(n)[i // 2],
            seed=100 + i,
            max_tokens=rng.randrange(1, 40),
            sampling=kinds[i % 4],
            **options,
        )
        for i in range(n)
    ]


def llama(**options):
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=261, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=512,
            initializer_range=0.15, **options,
        )
    ).eval()  # fmt: skip


def qwen2(**options):
    torch.manual_seed(0)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=261, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=1, max_position_embeddings=512,
            initializer_range=0.15, tie_word_embeddings=True, **options,
        )
    ).eval()  # fmt: skip


@pytest.mark.parametrize("family", ["qwen3", "qwen2", "llama"])
def test_greedy_tokens_and_log_probs_are_the_model_s(family, make_model, tokenizer, together):
    model = {"qwen3": make_model, "qwen2": qwen2, "llama": llama}[family]()
    sampler = TransformersEngine().build(model, tokenizer)
    asked = [Request(prompt=p, seed=0, max_tokens=20, sampling=GREEDY) for p in prompts(9)]
    asked += [replace(r, sampling=Sampling(temperature=0.7), seed=5) for r in asked]
    completions = together(sampler, asked)
    for request, completion in zip(asked, completions, strict=True):
        n = len(request.prompt)
        sequence = torch.tensor([[*request.prompt, *completion.tokens]])
        with torch.no_grad():
            logits = model(sequence).logits[0, n - 1 : -1].double()
        at = torch.arange(len(completion.tokens)), torch.tensor(completion.tokens)
        for temperature, got in [(1.0, completion.engine_logprobs)] + [
            (0.7, completion.sampling_logprobs)
        ] * bool(request.sampling.temperature):
            expected = (logits / temperature).log_softmax(-1)[at]
            torch.testing.assert_close(torch.tensor(got).double(), expected, atol=1e-5, rtol=0)
        if request.sampling.temperature == 0:
            assert set(completion.sampling_logprobs) == {0.0}
            generated = model.generate(
                torch.tensor([request.prompt]), max_new_tokens=20, do_sample=False,
                attention_mask=torch.ones(1, n), eos_token_id=0, pad_token_id=0,
            )  # fmt: skip
            assert generated[0, n:].tolist() == list(completion.tokens)


def test_the_first_token_has_the_model_s_distribution(model, tokenizer, together):
    prompt, n = prompts(1)[0], 4000
    sampler = TransformersEngine().build(model, tokenizer)
    asked = [
        Request(prompt=prompt, seed=i, max_tokens=1, sampling=Sampling(temperature=0.4))
        for i in range(n)
    ]
    counts = torch.zeros(261)
    for completion in together(sampler, asked):
        counts[completion.tokens[0]] += 1
    with torch.no_grad():
        expected = (model(torch.tensor([prompt])).logits[0, -1] / 0.4).softmax(-1)
    # The distance expected of n honest draws is below sum of sqrt(p (1 - p) / n) / 2.
    bound = ((expected * (1 - expected) / n).sqrt().sum() / 2).item()
    assert (counts / n - expected).abs().sum().item() / 2 < 1.2 * bound
    assert bound < 0.1


@pytest.mark.parametrize(
    "heads, kv_heads, threads, n", [(4, 4, 1, 50), (4, 2, 1, 50), (4, 1, 1, 50), (6, 2, 2, 7)]
)
def test_the_same_bits_alone_and_in_a_changing_batch(
    heads, kv_heads, threads, n, make_model, tokenizer, together
):
    torch.set_num_threads(threads)
    model = make_model(heads=heads, kv_heads=kv_heads)
    asked = requests(n)
    busy = TransformersEngine(max_rows=40).build(model, tokenizer)

    async def one(request: Request, delay: int):
        for _ in range(delay):
            await asyncio.sleep(0)
        task = asyncio.create_task(busy.sample(request))
        if request.seed % 7 == 3:  # some leave before they are done
            for _ in range(delay % 5 + 1):
                await asyncio.sleep(0)
            task.cancel()
        return (await asyncio.gather(task, return_exceptions=True))[0]

    async def crowd():
        rng = random.Random(2)
        return await asyncio.gather(*(one(r, rng.randrange(60)) for r in asked))

    in_company = asyncio.run(crowd())
    compared = 0
    for request, completion in zip(asked, in_company, strict=True):
        if isinstance(completion, asyncio.CancelledError):
            continue
        fresh = TransformersEngine(max_prefix_tokens=0).build(model, tokenizer)
        assert together(fresh, [request]) == [completion]  # floats compared exactly
        compared += 1
    assert compared >= 0.7 * n


def test_the_same_bits_whatever_is_cached(model, tokenizer, together):
    """Sampled turn by turn over the cache, as one long prompt, and in chunks of 7."""
    sampler = TransformersEngine().build(model, tokenizer)
    prompt = prompts(1, low=30, high=31)[0]
    for turn in range(4):
        request = Request(prompt=prompt, seed=turn, max_tokens=25)
        [cached] = together(sampler, [request])
        fresh = TransformersEngine().build(model, tokenizer)
        assert together(fresh, [request]) == [cached]
        prompt = (*prompt, *cached.tokens, *prompts(1, seed=turn)[0])
    assert sampler.cached_tokens > 100 and fresh.cached_tokens == 0


def test_a_long_prompt_runs_in_chunks_while_others_go_on(model, tokenizer, together, monkeypatch):
    asked = [Request(prompt=p, seed=i, max_tokens=12) for i, p in enumerate(prompts(6))]
    asked.append(Request(prompt=prompts(1, seed=3, low=200, high=201)[0], seed=9, max_tokens=5))
    whole = together(TransformersEngine().build(model, tokenizer), asked)
    monkeypatch.setattr(engine_module, "_STEP_PROMPT_TOKENS", 7)
    sampler = TransformersEngine().build(model, tokenizer)
    assert together(sampler, asked) == whole
    prompt_tokens = sum(len(r.prompt) for r in asked)
    assert sampler.prefilled_tokens == prompt_tokens
    assert sampler.num_steps >= prompt_tokens / 7


def test_siblings_that_arrive_together_run_their_prompt_once(model, tokenizer, together):
    sampler = TransformersEngine().build(model, tokenizer)
    prompt = prompts(1, low=20, high=21)[0]
    together(sampler, [Request(prompt=prompt, seed=i, max_tokens=6) for i in range(4)])
    # The first runs all 20 tokens; each of the others only the last, to draw from.
    assert sampler.prefilled_tokens == 20 + 3
    assert sampler.cached_tokens == 3 * 19


def test_a_next_turn_runs_only_what_is_new(model, tokenizer, together):
    sampler = TransformersEngine().build(model, tokenizer)
    prompt = prompts(1, low=20, high=21)[0]
    [first] = together(sampler, [Request(prompt=prompt, seed=1, max_tokens=8)])
    assert first.finish == "length"
    together(sampler, [Request(prompt=(*prompt, *first.tokens, 5, 6, 7), seed=2, max_tokens=3)])
    # The last sampled token was never fed: it runs with the three observed ones.
    assert sampler.prefilled_tokens == 20 + 4
    assert sampler.cached_tokens == 20 + 7
    assert sampler.sampled_tokens == 8 + 3


def test_instructions_that_questions_share_run_once(model, tokenizer, together):
    sampler = TransformersEngine().build(model, tokenizer)
    shared = prompts(1, low=30, high=31)[0]
    together(
        sampler, [Request(prompt=(*shared, 10 + i, 9), seed=0, max_tokens=2) for i in range(5)]
    )
    assert sampler.prefilled_tokens == 32 + 4 * 2


def test_the_cache_is_bounded_and_may_be_off(model, tokenizer, together):
    asked = requests(20)
    free = together(TransformersEngine().build(model, tokenizer), asked)
    for bound in (0, 60):
        sampler = TransformersEngine(max_prefix_tokens=bound).build(model, tokenizer)
        assert together(sampler, asked) == free
        assert sampler._prefixes.num_tokens <= bound


@pytest.mark.parametrize("limits", [{"max_rows": 3}, {"max_slot_tokens": 16 * 128}])
def test_requests_beyond_the_limits_wait(limits, model, tokenizer, together):
    asked = requests(20)
    free = together(TransformersEngine().build(model, tokenizer), asked)
    sampler = TransformersEngine(**limits).build(model, tokenizer)
    assert together(sampler, asked) == free


def test_new_weights_are_used_and_old_keys_are_not(model, tokenizer, together):
    sampler = TransformersEngine().build(model, tokenizer)
    asked = requests(8)
    before = together(sampler, asked)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    sampler.update_weights(model)
    after = together(sampler, asked)
    assert after != before
    assert after == together(TransformersEngine().build(model, tokenizer), asked)


def test_weights_are_not_changed_under_a_request(model, tokenizer):
    sampler = TransformersEngine().build(model, tokenizer)

    async def change() -> None:
        task = asyncio.create_task(sampler.sample(requests(1)[0]))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="1 requests are under way"):
            sampler.update_weights(model)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        sampler.update_weights(model)  # a cancelled one does not count

    asyncio.run(change())


def test_the_model_itself_is_left_alone(model, tokenizer, together):
    model.train()
    sampler = TransformersEngine().build(model, tokenizer)
    together(sampler, requests(4))
    assert model.training
    assert model.config._attn_implementation == "sdpa"
    shared = {p.data_ptr() for p in sampler._model.parameters()}
    assert shared == {p.data_ptr() for p in model.parameters()}
    loss = model(torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_turn_ends_at_a_stop_string(model, tokenizer, together):
    sampler = TransformersEngine().build(model, tokenizer)
    request = Request(prompt=prompts(1)[0], seed=3, max_tokens=40)
    [free] = together(sampler, [request])
    texts = [tokenizer.decode(free.tokens[i : i + 2]) for i in range(5, 35)]
    text = next(t for t in texts if len(t) >= 2 and t.isascii() and t.isprintable())
    [stopped] = together(sampler, [replace(request, stop=("never seen", text))])
    assert stopped.finish == "stop"
    assert stopped.tokens == free.tokens[: len(stopped.tokens)]
    assert text in tokenizer.decode(stopped.tokens)
    assert text not in tokenizer.decode(stopped.tokens[:-1])


@pytest.mark.parametrize("where", ["tokenizer", "config", "generation_config"])
def test_a_turn_ends_at_any_end_of_sequence(where, model, tokenizer, together):
    request = Request(prompt=prompts(1)[0], seed=3, max_tokens=40)
    [free] = together(TransformersEngine().build(model, tokenizer), [request])
    end = free.tokens[5]
    assert end not in free.tokens[:5]
    if where == "tokenizer":
        tokenizer = type("T", (), {"eos_token_id": end})
    elif where == "config":
        model.config.eos_token_id = end
    else:
        model.generation_config.eos_token_id = [7, end]
    [ended] = together(TransformersEngine().build(model, tokenizer), [request])
    assert (ended.finish, ended.tokens) == ("eos", free.tokens[:6])


def test_max_tokens_and_the_model_s_positions_end_a_turn(make_model, tokenizer, together):
    model = make_model(max_position_embeddings=32)
    sampler = TransformersEngine().build(model, tokenizer)
    request = Request(prompt=tuple(range(1, 29)), seed=0, max_tokens=2)
    assert [len(c.tokens) for c in together(sampler, [request])] == [2]
    [cut] = together(sampler, [replace(request, max_tokens=100)])
    assert (len(cut.tokens), cut.finish) == (4, "length")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"prompt": tuple(range(1, 33))}, "a prompt of 32 tokens leaves no room .* 32 positions"),
        ({"prompt": ()}, "needs a prompt"),
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"prompt": (1, 261)}, r"outside \[0, 261\)"),
        ({"prompt": (-1,)}, r"outside \[0, 261\)"),
    ],
)
def test_a_request_that_cannot_be_served_is_refused(change, message, make_model, tokenizer):
    sampler = TransformersEngine().build(make_model(max_position_embeddings=32), tokenizer)
    request = replace(Request(prompt=(1, 2), seed=0, max_tokens=4), **change)
    with pytest.raises(EngineError, match=message):
        asyncio.run(sampler.sample(request))


def test_a_request_larger_than_the_slots_is_refused(model, tokenizer):
    sampler = TransformersEngine(max_slot_tokens=16 * 64).build(model, tokenizer)
    with pytest.raises(EngineError, match="max_slot_tokens=1024"):
        asyncio.run(sampler.sample(Request(prompt=(1,) * 30, seed=0, max_tokens=60)))


def test_a_cancelled_request_leaves_the_batch(model, tokenizer, together):
    sampler = TransformersEngine().build(model, tokenizer)
    request = Request(prompt=prompts(1)[0], seed=1, max_tokens=30)

    async def cancel_one():
        tasks = [asyncio.create_task(sampler.sample(replace(request, seed=i))) for i in range(3)]
        for _ in range(8):
            await asyncio.sleep(0)
        tasks[0].cancel()
        for _ in range(3):
            await asyncio.sleep(0)
        assert len(sampler._rows) == 2
        return await asyncio.gather(*tasks, return_exceptions=True)

    left = [replace(request, seed=i) for i in (1, 2)]
    expected = together(TransformersEngine().build(model, tokenizer), left)
    first, *others = asyncio.run(cancel_one())
    assert isinstance(first, asyncio.CancelledError)
    assert others == expected
    assert not sampler._rows and not sampler._waiting


def test_a_forward_that_raises_fails_those_in_flight_only(model, tokenizer, together):
    sampler = TransformersEngine().build(model, tokenizer)
    asked = requests(6)
    expected = together(TransformersEngine().build(model, tokenizer), asked)
    broken = sampler._model.model.layers[1].mlp
    forward, calls = broken.forward, []

    def break_once(x):
        calls.append(1)
        if len(calls) == 3:
            raise ValueError("out of paper")
        return forward(x)

    broken.forward = break_once

    async def all_of_them():
        return await asyncio.gather(*(sampler.sample(r) for r in asked), return_exceptions=True)

    failures = [c for c in asyncio.run(all_of_them()) if isinstance(c, BaseException)]
    assert failures
    for failure in failures:
        assert isinstance(failure, EngineError) and "out of paper" in str(failure)
        assert isinstance(failure.__cause__, ValueError)
    assert together(sampler, asked) == expected


def test_logits_that_are_not_finite_fail_their_request(make_model, tokenizer, together):
    model = make_model(tie_word_embeddings=False)
    model.get_input_embeddings().weight.data[77] = math.nan
    sampler = TransformersEngine().build(model, tokenizer)
    sound = Request(prompt=(1, 2, 3), seed=0, max_tokens=5, sampling=GREEDY)
    [expected] = together(sampler, [sound])

    async def both():
        return await asyncio.gather(
            sampler.sample(replace(sound, prompt=(1, 77))), sampler.sample(sound),
            return_exceptions=True,
        )  # fmt: skip

    for _ in range(2):  # the second time over the slot that held NaN
        failed, completion = asyncio.run(both())
        assert isinstance(failed, EngineError) and "not finite" in str(failed)
        assert completion == expected


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
def test_event_loops_may_come_and_go(model, tokenizer, together):
    sampler = TransformersEngine().build(model, tokenizer)
    asked = requests(6)
    expected = together(sampler, asked)

    async def give_up():
        async with asyncio.timeout(0.02):
            await asyncio.gather(
                *(sampler.sample(replace(r, max_tokens=400)) for r in asked for _ in range(5))
            )

    async def walk_away():
        for request in asked:
            asyncio.create_task(sampler.sample(request))  # noqa: RUF006
        await asyncio.sleep(0)

    for leave in (give_up, walk_away):
        with contextlib.suppress(TimeoutError):
            asyncio.run(leave())
        assert together(sampler, asked) == expected

    loop = asyncio.new_event_loop()  # one that is closed without cancelling what it ran
    left = loop.create_task(walk_away())
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.close()
    assert not left.done() or left.exception() is None
    assert together(sampler, asked) == expected
    sampler.update_weights(model)
    gc.collect()


def test_the_sampler_lets_other_tasks_run(model, tokenizer):
    sampler = TransformersEngine().build(model, tokenizer)
    request = Request(prompt=(1, 2, 3), seed=0, max_tokens=20, sampling=GREEDY)

    async def count():
        ticks, task = 0, asyncio.create_task(sampler.sample(request))
        while not task.done():
            await asyncio.sleep(0)
            ticks += 1
        return ticks

    assert asyncio.run(count()) >= 20


def test_a_closed_sampler_answers_those_who_wait(model, tokenizer, together):
    sampler = TransformersEngine().build(model, tokenizer)

    async def close():
        task = asyncio.create_task(sampler.sample(requests(1)[0]))
        await asyncio.sleep(0)
        sampler.close()
        with pytest.raises(EngineError, match="closed"):
            await task

    asyncio.run(close())


def test_half_precision(make_model, tokenizer, together):
    model = make_model().to(torch.bfloat16)
    sampler = TransformersEngine().build(model, tokenizer)
    request = Request(prompt=prompts(1)[0], seed=1, max_tokens=10)
    [completion] = together(sampler, [request])
    sequence = torch.tensor([[*request.prompt, *completion.tokens]])
    with torch.no_grad():
        logits = model(sequence).logits[0, len(request.prompt) - 1 : -1].float()
    expected = logits.log_softmax(-1)[torch.arange(10), torch.tensor(completion.tokens)]
    torch.testing.assert_close(torch.tensor(completion.engine_logprobs), expected, atol=0.1, rtol=0)


def test_sliding_windows_are_refused(make_model, tokenizer):
    model = make_model(use_sliding_window=True, sliding_window=8, max_window_layers=1)
    with pytest.raises(ValueError, match="sliding_attention"):
        TransformersEngine().build(model, tokenizer)


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="max_rows >= 1"):
        TransformersEngine(max_rows=0)
