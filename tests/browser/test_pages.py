"""Every page in a real browser: it opens, it answers to mouse and keys, it does no harm."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from spanwise import spans
from spanwise.advantages import span_advantages
from spanwise.batch import Batch
from spanwise.partitions import LowProbability
from spanwise.run.folder import tree_record
from spanwise.tree import Node, Tree
from spanwise.viewer import Viewer, export
from tests.viewer.made_runs import (
    BIDI,
    IMAGE,
    SCRIPT,
    branching_tree,
    game_tree,
    make_run,
    metrics,
    record,
    small_tree,
    turn,
)

pytestmark = pytest.mark.browser

ARROW_RIGHT, ARROW_LEFT, ENTER = "\ue014", "\ue012", "\ue007"


@pytest.fixture
def served(page: Any, tmp_path: Path) -> Any:
    """Two runs, the first with all that a critic leaves behind."""
    make_run(
        tmp_path / "first",
        values=lambda t: 0.1 * t,
        advantages=lambda t: 0.5 - 0.2 * t,
        ratio=lambda t: 1.0 + 0.002 * t,
        entropies=lambda t: 0.3,
    )
    make_run(tmp_path / "second", recipe="grpo_search", seed=1, offset=0.1)
    page.serve(tmp_path / "first", tmp_path / "second")
    return page


@pytest.fixture
def game(page: Any, tmp_path: Path) -> Any:
    """A run on a game that pays on the way, with credit of its own settings and no critic."""
    spans = {"class": "LowProbability", "threshold": 0.3, "side": "end"}
    advantage = {"class": "SpanAdvantage", "lam": 0.8, "gamma": 0.9, "spans": spans}
    log = make_run(tmp_path / "game", trees_at=(), advantage=advantage)
    log.write_trees(1, [record(game_tree(), answers=())])
    page.serve(tmp_path / "game")
    return page


def test_the_run_page_draws_every_curve_of_every_run(served: Any) -> None:
    served.open()
    titles = served.value("[...document.querySelectorAll('.panel h2')].map((e) => e.textContent)")
    # Those that some run has metrics for, and no others.
    assert titles == [
        *("Score", "Held-out score", "Length", "Entropy", "Clip share", "Faults"),
        *("Tokens per second", "Engine and trainer mismatch", "Any metric"),
    ]
    assert served.text("[data-panel='Held-out score'] .panel-head").startswith(
        "Held-out score" + "Metric of Held-out score" + "eval/success"
    )
    reward = "[data-panel='Score'] polyline:not([opacity='0.3'])"
    assert served.count(reward) == 2
    assert served.count("#outcome tbody tr") == 2
    assert "40.0 → 80.0 % (+40.0)" in served.text("#outcome")
    assert "50.0 → 90.0 % (+40.0)" in served.text("#outcome")
    differing = served.value(
        "[...document.querySelectorAll('#differences tbody th')].map((e) => e.textContent)"
    )
    assert differing == ["recipe", "seed"]


def test_a_run_can_be_taken_out_of_the_comparison(served: Any) -> None:
    served.open()
    served.click("[data-run='1']")
    assert served.count("[data-panel='Score'] polyline:not([opacity='0.3'])") == 1
    assert "hide=1" in served.value("location.hash")
    served.open("#/runs?hide=1")
    assert served.count("[data-panel='Score'] polyline:not([opacity='0.3'])") == 1


def test_seeds_are_drawn_as_a_median_with_a_band(page: Any, tmp_path: Path) -> None:
    for seed, offset in enumerate((0.0, 0.1, 0.3)):
        make_run(tmp_path / f"seed{seed}", seed=seed, offset=offset)
    page.serve(*(tmp_path / f"seed{seed}" for seed in range(3)))
    page.open("#/runs?mode=median&smooth=0")
    assert page.text("#legend").endswith("at2po_search (3 seeds)")
    assert page.count("[data-panel='Score'] polygon") == 1
    # Step 1: scores .32, .42, .62: median .42, quarters half-way to its neighbours.
    first = page.value(
        "Charts.spread(Data.runs.map((r) => Data.points(r, 'unforked/score', 'step')))[0]"
    )
    assert (first["x"], first["y"]) == (1, pytest.approx(0.42))
    assert (first["low"], first["high"]) == (pytest.approx(0.37), pytest.approx(0.52))


def test_curves_run_along_steps_tokens_and_time(served: Any) -> None:
    served.open()
    ends = {
        axis: served.value(f"Data.points(Data.runs[0], 'entropy', '{axis}').at(-1).x")
        for axis in ("step", "tokens", "minutes")
    }
    # 20 steps of 100 tokens, half a second each.
    assert ends == {"step": 20, "tokens": 2000, "minutes": pytest.approx(10 / 60)}
    served.choose("#axis", "tokens")
    assert "x=tokens" in served.value("location.hash")
    assert "sampled tokens" in served.text("[data-panel='Score'] svg")
    assert served.value("Charts.smoothed([{x: 0, y: 1}, {x: 1, y: 0}], 0.5).map((p) => p.y)") == [
        1,
        pytest.approx(1 / 3),  # (0.5 * 0.5 * 1 + 0.5 * 0) / 0.75
    ]


def test_steps_are_marked_by_whole_numbers(page: Any, tmp_path: Path) -> None:
    make_run(tmp_path / "run", steps=3, trees_at=())
    page.serve(tmp_path / "run")
    page.open()
    marks = page.value(
        "[...document.querySelectorAll(\"[data-panel='Entropy'] svg text[text-anchor='middle']\")]"
        ".map((e) => e.textContent)"
    )
    assert marks == ["1", "2"]  # the third stands where the word step is


@pytest.mark.parametrize("view", ["#/runs", "#/tree/0", "#/tokens/0"])
def test_every_page_fits_a_narrow_window(served: Any, view: str) -> None:
    served.narrow(380)
    served.open(view)
    too_wide = served.value(
        "[...document.querySelectorAll('header, header *, #main, #main section')]"
        ".filter((e) => e.getBoundingClientRect().right > 381).map((e) => e.tagName + e.id)"
    )
    assert too_wide == []
    assert served.value("document.querySelector('main').scrollWidth") <= 380


def test_the_keys_read_a_curve_aloud_and_enlarge_it(served: Any) -> None:
    served.open("#/runs?smooth=0")
    served.js("document.querySelector('[data-panel=\"Entropy\"] .plot').focus()")
    served.press(ARROW_LEFT)
    assert "step 20" in served.text("[data-panel='Entropy'] .readout")
    served.press(ARROW_LEFT)
    served.until("document.getElementById('announce').textContent.includes('step 19')")
    served.press(ENTER)
    assert served.count(".panel") == 1 and "large=Entropy" in served.value("location.hash")


def test_a_turn_is_clicked_and_told_in_full(served: Any) -> None:
    served.open("#/tree/0/2/1")
    assert served.count("#picture [data-node]") == 6
    served.click("[data-node='0.1']")
    told = served.text("#turn")
    assert "Sampled in round 2 as a fresh sibling of 0.0" in told and "0.75" in told
    # Credit and values as written: 0.5 * 3 - 1 = 0.5; V(0.1) = .75, V(0) = .25, V(root) = 0.
    assert "advantage+0.500" in told
    assert "by over_parent+0.500" in told and "by over_root+0.750" in told
    assert "by over_both+1.250" in told and "by node_value+0.750 used" in told
    assert "node=0.1" in served.value("location.hash")
    assert "reward0return0successno" in told
    served.click("[data-node='0.2']")
    assert "Failed, tool_timeout: hung \\x1b[31mred" in served.text("#turn")
    assert "no return" in served.text("#turn")


def test_a_turn_that_is_paid_on_the_way_says_so(game: Any) -> None:
    game.open("#/tree/0/1/0?node=0.1")
    assert game.text("#trees .tally") == "return 0.583, 3 leaves"
    assert game.text("#tree-head .tree-line").startswith("3 leaves, mean return 0.583, 5 turns")
    badges = game.value(
        "[...document.querySelectorAll('#picture .payment')]"
        ".map((e) => [e.closest('[data-node]').dataset.node, e.textContent])"
    )
    assert sorted(badges) == [["0", "+0.5"], ["0.1", "−0.25"]]
    assert game.text("[data-node='0'] text").startswith("right")  # its label
    assert game.text("[data-node='0.1'] text").startswith("go left")  # without one, its text
    assert game.text("[data-node='0.0'] > text:last-child") == "1.5"
    assert game.text("[data-node='0.1.0'] > text:last-child") == "0.25 budget"
    told = game.text("#turn")
    assert "reward-0.25" in told and "leaves below1, mean return from here -0.25" in told
    assert "place0" in told and "note" + IMAGE in told  # the environment's own, as text
    game.click("[data-node='prompt']")
    assert game.text("#turn").endswith("What is known of the tasklevel3")
    game.click("[data-node='0.0']")
    assert "reward1return1.5ended byend" in game.text("#turn")
    assert "    0.1 go left  H 1.2  A +0.50  reward -0.25" in game.value("Trees.asText()")
    assert "      0.1.0 stay  H 2.3  A +1.00  reward 0  return 0.25" in game.value("Trees.asText()")


def test_a_branch_that_is_paid_on_the_way_says_so(game: Any) -> None:
    game.open("#/tokens/0/1/0/0.1.0")
    # The settings of the run: p = 0.3, which closes a segment, gamma 0.9 and lambda 0.8.
    for part in ("p=0.3", "side=end", "lam=0.8"):
        assert part in game.value("location.hash")
    assert "γ = 0.9" in game.text("#values-note")
    # Tokens 0 to 4: go right (+0.5), go left (-0.25), stay.
    paid = game.value(
        "[...document.querySelectorAll('#branch .payment')]"
        ".map((e) => [e.previousElementSibling.dataset.token, e.textContent])"
    )
    assert paid == [["1", "+0.5"], ["3", "−0.25"]]
    assert game.text("#branch .end") == "return 0.25 (budget)"
    game.click("#branch [data-token='3']")
    assert "reward−0.25" in game.text("#token")
    assert game.value("Tokens.asText().split('\\n').at(-2)") == "return 0.25 (budget)"


def test_the_environment_has_a_panel_for_each_figure(page: Any, tmp_path: Path) -> None:
    log = make_run(tmp_path / "run", steps=3, trees_at=())
    for step in (4, 5):
        log.write_metrics(metrics(step) | {"env/place": step / 10, f"env/{IMAGE}": 1.0})
    page.serve(tmp_path / "run")
    page.open()
    titles = page.value("[...document.querySelectorAll('.panel h2')].map((e) => e.textContent)")
    assert titles[-3:] == [f"env/{IMAGE}", "env/place", "Any metric"]
    assert page.count("#main img") == 0
    assert page.value("Data.points(Data.runs[0], 'env/place', 'step').length") == 2
    page.choose("[data-panel='Any metric'] select", "env/place")
    page.open(page.value("location.hash"))
    assert page.value("document.querySelector(\"[data-panel='Any metric'] select\").value") == (
        "env/place"
    )


def test_the_colours_follow_what_is_chosen(served: Any) -> None:
    served.open("#/tree/0/2/0?node=0")
    fill = "document.querySelector(\"[data-node='0.0'] rect\").getAttribute('fill')"
    seen = set()
    for name in ("advantage", "value", "return", "entropy", "ratio", "clipped"):
        served.choose("#colour", name)
        assert f"colour={name}" in served.value("location.hash") or name == "advantage"
        seen.add((name, served.value(fill)))
    assert len({colour for _, colour in seen}) >= 4


def test_clipped_tokens_are_those_where_the_clip_acts(served: Any) -> None:
    served.open()
    # Limits 0.997 and 1.004. A ratio above counts with A > 0, one below with A < 0.
    shares = served.value(
        "[1, -1, 0].map((A) => Turn.clippedShare("
        "{advantage: A, advantages: null, ratio: [0.9, 1, 1.1, 1.003, null, 1.2, 1.3, 0.998]},"
        " Data.runs[0]))"
    )
    assert shares == [3 / 8, 1 / 8, 0]


def test_zero_is_neutral_and_signs_are_told_apart_in_both_themes(served: Any) -> None:
    served.open()
    for theme in ("light", "dark"):
        served.js(f"document.documentElement.dataset.theme = '{theme}'")
        low, zero, high = (
            tuple(int(c[i : i + 2], 16) for i in (1, 3, 5))
            for c in served.value("[-1, 0, 1].map((v) => Scales.signed(v, 1))")
        )
        assert max(zero) - min(zero) < 16  # grey
        assert low[0] > low[2] + 60 and high[2] > high[0] + 60  # orange against blue
        for value in (-1, -0.6, -0.3, 0, 0.3, 0.6, 1):
            contrast = served.value(
                f"((a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05))"
                f"(Scales.luminance(Scales.signed({value}, 1)),"
                f" Scales.luminance(Scales.textOn(Scales.signed({value}, 1))))"
            )
            assert contrast >= 4.5, (theme, value)


def test_a_tree_is_walked_with_the_keys(served: Any) -> None:
    served.open("#/tree/0/2/0?node=prompt")
    served.js("document.querySelector(\"[data-node='prompt']\").focus()")
    walked = []
    for key in (ARROW_RIGHT, ARROW_RIGHT, "\ue015", "\ue013", ARROW_LEFT, "\ue015"):
        served.press(key)
        walked.append(served.value("document.activeElement.dataset.node"))
    assert walked == ["0", "0.0", "0.1", "0.0", "0", "1"]
    served.press(ARROW_LEFT, ARROW_RIGHT, " ")
    assert served.count("#picture [data-node]") == 3  # what is below 0 is folded
    assert served.value("document.activeElement.getAttribute('aria-expanded')") == "false"
    served.press(" ", ENTER)
    served.until("location.hash.startsWith('#/tokens/0/2/0/0.0')")
    served.ready()


def test_steps_and_trees_are_changed_with_the_keys(served: Any) -> None:
    served.open("#/tree/0/1")
    served.press("]")
    served.until("location.hash.startsWith('#/tree/0/2/')")
    served.ready()
    before = served.value("location.hash")
    served.press(".")
    served.until(f"location.hash !== '{before}'")
    served.ready()
    served.press("3")
    served.until("location.hash.startsWith('#/tokens/0/2/')")
    served.ready()
    served.press("1")
    served.until("location.hash.startsWith('#/runs')")
    served.ready()


def test_a_page_that_comes_late_does_not_call_its_reader_back(served: Any) -> None:
    served.open("#/tree/0/1")
    served.js(
        "const tree = Data.tree;"
        "const late = new Promise((resolve) => (window.arrive = resolve));"
        "Data.tree = async (...which) => { await late; return tree(...which); };"
    )
    served.press("3")
    served.until("document.getElementById('main').dataset.ready === undefined")
    served.press("1")
    served.until("location.hash.startsWith('#/runs')")
    served.js("window.arrive()")
    served.ready()
    assert served.value("location.hash").startswith("#/runs")
    assert served.value("document.getElementById('main').dataset.ready") == "runs"


def test_a_branch_is_read_with_its_segments(served: Any) -> None:
    served.open("#/tokens/0/2/0/0.0?p=0.2")
    # Tokens at p = .1 .9 .1 | .1 .9 .1: the first opens, then every one below 0.2.
    assert served.count("#branch .token") == 6
    opens = served.value(
        "[...document.querySelectorAll('#branch .token.opens')].map((e) => +e.dataset.token)"
    )
    assert opens == [0, 2, 3, 5]
    assert "6 model tokens in 4 segments of 1.5" in served.text("#segments")
    served.choose("#side", "end")
    opens = served.value(
        "[...document.querySelectorAll('#branch .token.opens')].map((e) => +e.dataset.token)"
    )
    assert opens == [0, 1, 3, 4]
    assert served.count("#branch .observation") == 2  # the task, and what the tool said


def test_segments_are_by_the_log_probs_that_decided_in_the_run(page: Any, tmp_path: Path) -> None:
    spans = {"class": "LowProbability", "threshold": 0.2, "side": "start", "logprobs": "sampling"}
    advantage = {"class": "SpanAdvantage", "lam": 0.95, "gamma": 1.0, "spans": spans}
    tree = small_tree()
    certain = [replace(n, sampling_logprobs=(0.0,) * len(n.tokens)) for n in tree.nodes]
    log = make_run(tmp_path / "certain", trees_at=(), advantage=advantage)
    log.write_trees(1, [record(replace(tree, nodes=tuple(certain)))])
    page.serve(tmp_path / "certain")
    page.open("#/tokens/0/1/0/0.0")
    assert "6 model tokens in 1 segment" in page.text("#segments")


def test_the_sliders_change_the_estimates(served: Any) -> None:
    served.open("#/tokens/0/2/0/0.0?p=0.2&lam=0.95")

    def means() -> list[str]:
        return served.value(
            "[...document.querySelectorAll('#turn-means tbody tr:first-child td')]"
            ".map((e) => e.textContent)"
        )

    at_95 = means()
    served.choose("#lam", "0")
    at_0 = means()
    assert at_0[0] != at_95[0] and at_0[1] != at_95[1] and at_0[2] == at_95[2]
    assert "lam=0&" in served.value("location.hash")
    served.choose("#threshold", "0")
    assert means()[1] == means()[2]  # one segment: SAE is Monte Carlo
    served.choose("#threshold", "1")
    assert means()[1] == means()[0]  # every token a segment: SAE is GAE
    assert "the recorded values of the critic" in served.text("#values-note")
    served.go("#/tokens/1/2/0/0.0")
    assert "No values of a critic were recorded" in served.text("#values-note")


CREDIT = Path(__file__).parents[2] / "spanwise/viewer/page/credit.js"


@pytest.mark.parametrize("side", ["start", "end"])
@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
def test_the_estimators_are_those_of_the_library(page: Any, side: Any, lam: float) -> None:
    generator = torch.Generator().manual_seed(0)
    page.driver.get("about:blank")
    for length in (1, 2, 17):
        logprobs = torch.rand(1, length, generator=generator, dtype=torch.float64).log()
        values = torch.randn(1, length, generator=generator, dtype=torch.float64)
        rewards = torch.randn(1, length, generator=generator, dtype=torch.float64)
        mask = torch.ones(1, length, dtype=torch.bool)
        partitions = {
            "byToken(n)": spans.by_token(mask),
            "whole(n)": spans.whole(mask),
            f"lowProbability(logprobs, 0.4, '{side}')": spans.by_probability(
                logprobs, mask, threshold=0.4, side=side
            ),
        }
        for call, partition in partitions.items():
            ours = page.js(
                CREDIT.read_text(encoding="utf-8")
                + f"; const [logprobs, values, rewards, lam] = arguments; const n = values.length;"
                f"const s = Credit.{call};"
                "return [s, Credit.spanAdvantages(rewards, values, s, {gamma: 0.9, lam})]",
                logprobs[0].tolist(),
                values[0].tolist(),
                rewards[0].tolist(),
                lam,
            )
            theirs = span_advantages(rewards, values, partition, gamma=0.9, lam=lam)[0].tolist()
            assert ours[0] == partition[0].tolist()
            assert ours[1] == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize("side", ["start", "end"])
def test_what_a_branch_is_paid_on_the_way_is_credited_as_in_a_batch(page: Any, side: Any) -> None:
    silent = (
        Node(path=(), observation=(1,), stop="prompt"),
        turn(0, stop="continue", words=("a", "b", "c"), reward=0.5, observation=(2, 3)),
        turn(0, 0, stop="continue", words=(), reward=0.125, observation=(4,)),  # pays token c
        turn(0, 0, 0, stop="end", words=("d", "e"), reward=-1.0),
    )
    trees = [game_tree(), small_tree(), Tree(task_id="silent", nodes=silent)]
    batch = Batch.from_trees(trees)
    values = torch.randn(batch.mask.shape, generator=torch.Generator().manual_seed(1)).double()
    partition = LowProbability(threshold=0.3, side=side)(batch)
    rewards = batch.rewards_by_token.double()
    theirs = span_advantages(rewards, values, partition, gamma=0.9, lam=0.8)
    branches = [b for tree in trees for b in tree.branches() if b.leaf.reward is not None]
    page.driver.get("about:blank")
    for row, branch in enumerate(branches):
        own = batch.mask[row]
        turns = [
            {"tokens": n.tokens, "reward": n.reward, "logprobs": n.engine_logprobs}
            for n in branch.nodes
        ]
        paid, credit = page.js(
            CREDIT.read_text(encoding="utf-8")
            + f"; const [turns, values] = arguments; const rewards = Credit.tokenRewards(turns);"
            "const logprobs = turns.flatMap((node) => node.logprobs);"
            f"const spans = Credit.lowProbability(logprobs, 0.3, '{side}');"
            "const settings = {gamma: 0.9, lam: 0.8};"
            "return [rewards, Credit.spanAdvantages(rewards, values, spans, settings)]",
            turns,
            values[row, own].tolist(),
        )
        assert paid == rewards[row, own].tolist()
        assert credit == pytest.approx(theirs[row, own].tolist(), abs=1e-12)


RETURNS_TO_GO = """
const names = arguments[1];
return Data.tree(arguments[0], arguments[2], 0).then((t) => {
  const found = Credit.returnsToGo(t.nodes);
  return names.map((name) => found.get(t.node(name))).map(({ from, after }) => [from, after]);
});
"""


def test_the_tree_estimates_a_value_where_no_critic_did(served: Any) -> None:
    served.open()
    # Below turn 0: 1, 0 and a failure, which counts for nothing; below the root also 0.
    found = served.js(RETURNS_TO_GO, 1, ["prompt", "0", "0.2"], 2)
    assert [after for _, after in found] == [pytest.approx(1 / 3), 0.5, None]


def test_the_value_of_a_turn_is_what_is_paid_after_it(game: Any) -> None:
    game.open()
    found = game.js(RETURNS_TO_GO, 0, ["0.1.0", "0.1", "0.0", "0", "prompt"], 1)
    # 0.1.0 is paid 0, 0.1 -0.25 and 0 after it, 0.0 1; 0 is paid 0.5 and then one of the two;
    # of the three leaves below the prompt two come through 0, the third is paid 0.
    assert found == [[0, 0], [-0.25, 0], [1, 0], [0.875, 0.375], [pytest.approx(1.75 / 3)] * 2]


def test_text_of_the_model_does_nothing(served: Any) -> None:
    for place in ("#/runs", "#/tree/0/2/0?node=0.0", "#/tokens/0/2/0/0.0"):
        served.open(place)
        assert served.count("#main img, #main script, #main b > b") == 0
        assert "taken" not in served.value("document.title")
    shown = served.text("#branch")
    assert SCRIPT in shown and IMAGE in shown
    assert "\\x1b[31mred" in shown and "\\u202egnp.txet" in shown
    assert BIDI not in served.value("document.documentElement.outerHTML")
    assert "\x1b" not in served.value("document.documentElement.outerHTML")
    copied = served.value("Tokens.asText()")
    assert "\x1b" not in copied and "\u202e" not in copied and SCRIPT in copied


def test_a_live_run_goes_on_by_itself(page: Any, tmp_path: Path) -> None:
    log = make_run(tmp_path / "run", steps=5, trees_at=(1,), finished=False)
    page.serve(tmp_path / "run")
    page.open("#/runs?smooth=0")
    assert page.text("#live") == "● live, step 5"
    log.write_metrics(metrics(6))
    log.write_metrics(metrics(7))
    page.until("document.getElementById('live').textContent === '● live, step 7'")
    page.until("Data.points(Data.runs[0], 'entropy', 'step').length === 7")
    log.write_summary({"before": {"success": 0.1}, "after": {"success": 0.9}})
    page.until("document.getElementById('live').textContent === ''")
    assert "10.0 → 90.0 %" in page.text("#outcome")


def test_places_that_are_not_there_are_told(served: Any) -> None:
    served.open()
    for place in ("#/tree/9", "#/tree/0/77", "#/tree/0/1/55", "#/tokens/0/1/44"):
        served.go("#/runs")
        served.go(place)
        assert served.count("#main [role=alert]") == 1
    served.open("#/nonsense/%E0%A4%A/x?lam=%")
    assert served.count(".panel") > 5
    # Chromium itself writes a line for each answer "404"; nothing else may be there.
    messages = [entry["message"] for entry in served.driver.get_log("browser")]
    assert all("404 (Not Found)" in message for message in messages), messages


def test_a_deep_link_leads_back_to_the_same_view(served: Any) -> None:
    served.open("#/tokens/0/2/0/0.0")
    served.choose("#tint", "sae")
    served.choose("#lam", "0.5")
    served.click("#branch [data-token='4']")
    link, shown = served.value("location.hash"), served.text("#main")
    served.open("#/runs")
    served.open(link)
    assert served.text("#main") == shown
    assert served.text("#token").startswith("\\u202e") or "token 4 of 6" in served.text("#token")


def test_pictures_and_text_can_be_taken_along(served: Any) -> None:
    served.open("#/tree/0/2/0")
    saved = served.js(
        "window.saved = []; HTMLAnchorElement.prototype.click = function () {"
        "  saved.push([this.download, this.href]); };"
        "for (const b of document.querySelectorAll('#tree-head .savers button')) b.click();"
        "return new Promise((r) => setTimeout(() => r(window.saved), 600))"
    )
    assert [name for name, _ in saved] == ["tree-2-0.svg", "tree-2-0.png"]
    assert saved[1][1].startswith("data:image/png;base64,") and len(saved[1][1]) > 5000
    text = served.value("Trees.asText()")
    assert text.splitlines()[0].startswith("step 2, tree 0: <img")
    line = "    0.1 no no  H 1.2  A +0.50  reward 0  return 0  round 2, beside 0.0"
    assert line in text.splitlines()
    served.go("#/runs")
    assert "second\tgrpo_search\t1\t20" in served.value("Runs.asText()")


def test_the_theme_changes_and_is_remembered(served: Any) -> None:
    served.open()
    before = served.value("getComputedStyle(document.body).color")
    theme = served.value("document.documentElement.dataset.theme")
    served.press("d")
    assert served.value("document.documentElement.dataset.theme") != theme
    assert served.value("getComputedStyle(document.body).color") != before
    served.open()
    assert served.value("document.documentElement.dataset.theme") != theme
    served.press("d")


def test_everything_that_can_be_used_has_a_name(served: Any) -> None:
    for place in ("#/runs", "#/tree/0/2/0", "#/tokens/0/2/0"):
        served.open(place)
        nameless = served.value(
            "[...document.querySelectorAll('button, select, input, svg[role], [role=treeitem]')]"
            ".filter((e) => !(e.getAttribute('aria-label') || e.textContent.trim()"
            " || e.labels?.length)).map((e) => e.outerHTML)"
        )
        assert nameless == []
        assert served.count("main") == 1 and served.count("[role=treeitem][tabindex='0']") in (0, 1)


def test_an_exported_file_works_alone(page: Any, tmp_path: Path) -> None:
    make_run(tmp_path / "run", values=lambda t: 0.5)
    path = tmp_path / "page.html"
    export(Viewer([tmp_path / "run"]), path)
    page.open("#/runs", address=path.as_uri())
    assert page.count("[data-panel='Score'] polyline") >= 1
    page.go("#/tree/0/20/2?node=0.1")
    assert "Sampled in round 2" in page.text("#turn")
    page.go("#/tokens/0/20/2/0.0")
    assert page.count("#branch .token") == 6 and SCRIPT in page.text("#branch")
    assert "taken" not in page.value("document.title")


@pytest.mark.parametrize("num_leaves", [22, 500])
def test_trees_of_many_leaves(page: Any, tmp_path: Path, num_leaves: int) -> None:
    tree = branching_tree(num_leaves)
    log = make_run(tmp_path / "run", trees_at=())
    task = {"question": "q", "answers": [], "info": {}}
    credit = [math.sin(i) for i in range(len(tree.nodes))]
    log.write_trees(1, [tree_record(tree, task, advantages=credit)])
    page.serve(tmp_path / "run")
    page.open("#/tree/0/1/0?node=0")
    assert page.count("[data-node]") == num_leaves + 9
    heights = "((e) => [e.scrollHeight, e.clientHeight])(document.getElementById('picture'))"
    scroll, inner = page.value(heights)
    font = float(page.value("document.querySelector('#picture svg').getAttribute('font-size')"))
    assert font >= 11  # labels are readable
    if num_leaves == 22:
        assert scroll <= inner  # all at once
    else:
        assert scroll > inner
        page.click("#fit")
        scroll, inner = page.value(heights)
        assert scroll <= inner + 20
        page.js("document.querySelector(\"[data-node='7.30']\")"
                ".dispatchEvent(new MouseEvent('click', {bubbles: true}))")  # fmt: skip
        assert "Turn 7.30" in page.text("#turn")


def poison(folder: Path) -> None:
    """Make a run that was well say what no run says."""
    first, second = {**metrics(1), "own/far": 1e16}, {**metrics(2), "own/far": 1e16 + 2}
    lines = [
        '{"step": 1e999, "unforked/score": 1e999, "entropy": -1e999, "seconds/rollout": 1e999}',
        '{"step": 3, "unforked/score": 1.7e308}',
        '{"step": 4, "unforked/score": -1.7e308, "entropy": 1e17}',
        '{"step": 5, "unforked/score": 1e299, "entropy": 1.00000000000000016e17}',
        '{"step": "x", "unforked/score": {}, "entropy": "0", "critic_batch": "y"}',
        '{"__proto__": {"step": 1}, "constructor": 2, "": 3}',
        '{"a":' * 20_000 + "1" + "}" * 20_000,
        "[1, 2]", "null", "3", '"text"', "{", "NaN", '{"step": NaN}',
    ]  # fmt: skip
    with (folder / "metrics.jsonl").open("wb") as file:
        for row in (first, second):
            file.write(json.dumps(row).encode() + b"\n")
        file.write("\n".join(lines).encode() + b'\n{"\xff": 1}\n\xff\xfe\n')
    summary = {"before": {"score": "1", "success": [1]}, "after": 3, "sampled_tokens": {}}
    (folder / "summary.json").write_text(json.dumps(summary))
    tree = record(small_tree())
    tree["nodes"][1] |= {"text": 3, "label": [], "observation_text": None, "entropy": "x"}
    (folder / "trees/step_00001.jsonl").write_text(json.dumps(tree) + "\n")
    (folder / "trees/step_00002.jsonl").unlink()
    os.mkfifo(folder / "trees/step_00002.jsonl")


def test_a_poisoned_run_leaves_the_others_in_sight(page: Any, tmp_path: Path) -> None:
    make_run(tmp_path / "good")
    poison(make_run(tmp_path / "bad").folder)
    page.serve(tmp_path / "good", tmp_path / "bad")
    for place in ("#/runs", "#/runs?x=tokens", "#/runs?x=minutes", "#/runs?mode=median"):
        page.open(place)
        assert page.count("[data-panel='Score'] polyline") >= 1
        assert page.count("#outcome tbody tr") == 2
        assert "lines of metrics cannot be read" in page.text("#notes")
        assert "NaN" not in page.value("document.getElementById('panels').innerHTML")
    page.go("#/tree/0/1/0")
    assert page.count("[data-node]") == 6
    for place in ("#/tree/1/1/0", "#/tokens/1/1/0", "#/tree/1/2/0"):
        page.open(place)
        assert page.count("[role=alert], [data-node], #branch") >= 1
    page.driver.get_log("browser")  # that a tree is refused (404) is said there too
    page.open("#/runs")
    assert page.count("#outcome tbody tr") == 2
