from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from spanwise import spans
from spanwise.batch import Batch
from spanwise.credit import GroupAdvantage, SpanAdvantage, TreeAdvantage
from spanwise.partitions import (
    Delimiter,
    FixedLength,
    HighEntropy,
    LowProbability,
    MeanLength,
    Partition,
    Token,
    Trajectory,
    Turn,
)
from spanwise.tree import Tree
from tests.trees import grown, of_probabilities, root, turn

# Four tokens; the third was unlikely. Values 0.5 0.4 0.6 0.9, reward 1.
BATCH = replace(
    Batch.from_trees([of_probabilities(((0.9, 0.8, 0.1, 0.7), 1.0, "end"))]),
    values=torch.tensor([[0.0, 0.0, 0.5, 0.4, 0.6, 0.9]]),
    token_entropies=torch.tensor([[0.0, 0.0, 0.1, 0.2, 2.0, 0.3]]),
)
PLAIN = SpanAdvantage(whiten=False, lam=0.5)


def credit(advantage: SpanAdvantage, batch: Batch = BATCH) -> list[float]:
    return advantage(batch)[batch.mask].tolist()


def over(partition: Partition) -> SpanAdvantage:
    return replace(PLAIN, spans=partition)


# Backwards: A_4 = 1 - 0.9 = 0.1 always. Inside a span A_t = (V_next - V_t) + A_next, across
# a boundary A_t = (V_next - V_t) + 0.5 A_next.
@pytest.mark.parametrize(
    ("advantage", "expected"),
    [
        # whole: 1 - V
        (over(Trajectory()), [0.5, 0.6, 0.4, 0.1]),
        # token: A_3 = 0.3 + 0.05, A_2 = 0.2 + 0.175, A_1 = -0.1 + 0.1875
        (over(Token()), [0.0875, 0.375, 0.35, 0.1]),
        # boundary before token 3: A_3 = 0.4, A_2 = 0.2 + 0.2, A_1 = -0.1 + 0.4
        (over(LowProbability()), [0.3, 0.4, 0.4, 0.1]),
        # boundary after token 3: A_3 = 0.3 + 0.05, A_2 = 0.2 + 0.35, A_1 = -0.1 + 0.55
        (over(LowProbability(side="end")), [0.45, 0.55, 0.35, 0.1]),
        # threshold above token 4's 0.7 too: boundaries before 3 and 4
        (over(LowProbability(threshold=0.75)), [0.275, 0.375, 0.35, 0.1]),
        # pairs: as the boundary before token 3
        (over(FixedLength(length=2)), [0.3, 0.4, 0.4, 0.1]),
        (over(FixedLength(length=4)), [0.5, 0.6, 0.4, 0.1]),
        # a mean of two tokens is one boundary, before the least likely
        (over(MeanLength(length=2)), [0.3, 0.4, 0.4, 0.1]),
        # the token above the third quartile opens a span
        (over(HighEntropy(quantile=0.75)), [0.3, 0.4, 0.4, 0.1]),
        (over(Turn()), [0.5, 0.6, 0.4, 0.1]),
        # lam 1 is Monte Carlo whatever the spans
        (replace(over(Token()), lam=1.0), [0.5, 0.6, 0.4, 0.1]),
    ],
)
def test_partitions_by_hand(advantage: SpanAdvantage, expected: list[float]) -> None:
    assert credit(advantage) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", [LowProbability, partial(MeanLength, length=2)])
def test_the_probabilities_that_decide_are_the_models_or_those_that_were_drawn_from(
    kind: Any,
) -> None:
    drawn = torch.tensor([[0.0, 0.0, 0.9, 0.1, 0.8, 0.7]]).log()
    batch = replace(BATCH, sampling_logprobs=torch.where(BATCH.mask, drawn, 0))
    assert credit(over(kind(logprobs="engine")), batch) == credit(over(kind()))
    # boundary before token 2: A_3 = 0.4, A_2 = 0.2 + 0.4, A_1 = -0.1 + 0.3
    found = credit(over(kind(logprobs="sampling")), batch)
    assert found == pytest.approx([0.2, 0.6, 0.4, 0.1], abs=1e-6)


def test_discount_by_hand() -> None:
    # whole, gamma 0.5: 0.5 ** 3 - 0.5, 0.25 - 0.4, 0.5 - 0.6, 1 - 0.9
    advantage = replace(over(Trajectory()), gamma=0.5)
    assert credit(advantage) == pytest.approx([-0.375, -0.15, -0.1, 0.1], abs=1e-6)


class Letters:
    def __len__(self) -> int:
        return 5

    def decode(self, token_ids: list[int]) -> str:
        return "".join("ab;c\n"[t] for t in token_ids)


def test_delimiters_are_looked_up_in_the_vocabulary() -> None:
    # tokens 1 2 3 4 are "b;c\n": a boundary after the second, or at the end
    advantage = over(Delimiter(text=";")).bind(Letters())
    assert credit(advantage) == pytest.approx([0.3, 0.4, 0.4, 0.1], abs=1e-6)
    newline = over(Delimiter()).bind(Letters())
    assert credit(newline) == pytest.approx([0.5, 0.6, 0.4, 0.1], abs=1e-6)
    with pytest.raises(ValueError, match="no token's text has the delimiter"):
        over(Delimiter(text="?")).bind(Letters())
    with pytest.raises(ValueError, match="bind"):
        over(Delimiter())(BATCH)


def test_critic_and_policy_have_decays_of_their_own() -> None:
    # the critic's default target is the outcome, whatever the policy's decay
    assert PLAIN.critic_targets(BATCH)[BATCH.mask].tolist() == pytest.approx([1.0] * 4)
    # critic_lam 0.5 over tokens: the advantages 0.0875 0.375 0.35 0.1 plus the values
    advantage = replace(over(Token()), lam=0.9, critic_lam=0.5)
    expected = [0.5875, 0.775, 0.95, 1.0]
    assert advantage.critic_targets(BATCH)[BATCH.mask].tolist() == pytest.approx(expected)
    # and the policy's advantages are those of 0.9: A_3 = 0.3 + 0.09, A_2 = 0.2 + 0.351 ...
    assert credit(advantage) == pytest.approx([-0.1 + 0.9 * 0.551, 0.551, 0.39, 0.1], abs=1e-6)


def test_decay_by_length() -> None:
    # alpha 0.5, rows of 4 and 8 tokens: lam = 1 - 1/2 and 1 - 1/4
    rows = [((0.9,) * 4, 1.0, "end"), ((0.9,) * 8, 1.0, "end")]
    batch = Batch.from_trees([of_probabilities(*rows)])  # pyright: ignore[reportArgumentType]
    batch = replace(batch, values=torch.zeros(2, 10))
    advantage = replace(over(Token()), length_alpha=0.5)
    found = advantage(batch)
    assert found[0, 2:6].tolist() == pytest.approx([0.5**3, 0.5**2, 0.5, 1])
    assert found[1, 2:].tolist() == pytest.approx([0.75**k for k in range(7, -1, -1)])
    # the critic's decay stays its own
    assert advantage.critic_targets(batch)[batch.mask].unique().tolist() == [1.0]


def test_whitening_counts_the_tokens_that_are_trained() -> None:
    trees = [
        of_probabilities(((0.9,) * 4, 1.0, "end"), ((0.9,) * 3, 0.0, "length"), name="a"),
        of_probabilities(((0.9,) * 2, 0.5, "end"), name="b"),
    ]
    batch = Batch.from_trees(trees)
    batch = replace(batch, values=torch.zeros_like(batch.engine_logprobs))
    white = SpanAdvantage()(batch)
    assert white[batch.mask].mean() == pytest.approx(0, abs=1e-6)
    assert white[batch.mask].std() == pytest.approx(1, abs=1e-5)
    assert white[~batch.mask].eq(0).all()
    masked = replace(batch, trained=~batch.truncated)
    white = SpanAdvantage()(masked)
    assert white[1].eq(0).all()
    # 4 tokens of advantage 1 and 2 of 0.5: mean 5/6, deviation sqrt((4/36 + 2/9) / 5)
    assert white[0, 2].item() == pytest.approx((1 / 6) / (1 / 15) ** 0.5, rel=1e-4)
    assert SpanAdvantage(whiten=False)(batch)[0, 2] == 1.0


def test_masked_values_and_padding_change_nothing() -> None:
    noisy = replace(
        BATCH,
        values=torch.where(BATCH.mask, BATCH.values, torch.nan),
        token_rewards=torch.where(BATCH.mask, 0.0, 7.0),
    )
    assert credit(SpanAdvantage(), noisy) == credit(SpanAdvantage())


def test_a_cut_row_goes_on_from_the_critic_if_asked_to() -> None:
    batch = replace(BATCH, turn_rewards=torch.zeros(2), end_values=torch.tensor([0.8]))
    # whole span: 0.8 - V
    assert credit(over(Trajectory()), batch) == pytest.approx([0.3, 0.4, 0.2, -0.1], abs=1e-6)
    targets = PLAIN.critic_targets(batch)[batch.mask]
    assert targets.tolist() == pytest.approx([0.8] * 4)


def test_rewards_of_single_tokens_reach_every_kind_of_credit() -> None:
    paid = torch.tensor([[0.0, 0.0, 0.0, -0.25, 0.0, -0.5]])
    batch = replace(BATCH, token_rewards=paid)
    assert batch.returns.tolist() == [0.25]
    # whole: 0.25 - 0.5; after the token that costs 0.25 there is 0.5 to come
    assert credit(over(Trajectory()), batch) == pytest.approx([-0.25, -0.15, -0.1, -0.4], abs=1e-6)
    both = Batch.from_trees([of_probabilities(((0.9,), 1.0, "end"), ((0.9,), 1.0, "end"))])
    both = replace(both, token_rewards=torch.tensor([[0.0, 0.0, -1.0], [0.0, 0.0, 0.0]]))
    centred = GroupAdvantage(baseline="group_mean")(both)
    assert centred[:, 2].tolist() == [-0.5, 0.5]
    assert TreeAdvantage()(both)[:, 2].tolist() == pytest.approx([-1, 1], abs=1e-5)


def two_turns(*paid: tuple[float, float], name: str = "t") -> Tree:
    """Chains of two turns of two tokens each, each turn paid."""
    nodes = [root(50, 51)]
    for i, (first, last) in enumerate(paid):
        nodes.append(turn(i, tokens=(1, 2), logprobs=-0.5, observation=(90,), reward=first))
        nodes.append(turn(i, 0, tokens=(3, 4), logprobs=-0.5, reward=last))
    return grown(*nodes, name=name)


# 0.25 for the first turn and 1 for the second; values 0.5 0.4, a tool's token, 0.6 0.9.
PAID = replace(
    Batch.from_trees([two_turns((0.25, 1.0))]),
    values=torch.tensor([[0.0, 0.0, 0.5, 0.4, 9.0, 0.6, 0.9]]),
)


# Backwards: 1 - 0.9; then inside a span V_next - V + A_next, across a boundary V_next - V +
# 0.5 A_next, and 0.25 more at the first turn's last token.
@pytest.mark.parametrize(
    ("partition", "expected"),
    [
        (Trajectory(), [0.75, 0.85, 0.4, 0.1]),  # 1.25 to come in the first turn, then 1
        (Turn(), [0.55, 0.65, 0.4, 0.1]),  # 0.25 + 0.2 + 0.2, then - 0.1
        (Token(), [0.2125, 0.625, 0.35, 0.1]),  # 0.25 + 0.2 + 0.175, then - 0.1 + 0.3125
    ],
)
def test_rewards_on_the_way_in_the_credit_of_a_critic(
    partition: Partition, expected: list[float]
) -> None:
    advantage = replace(PLAIN, spans=partition)
    assert credit(advantage, PAID) == pytest.approx(expected, abs=1e-6)
    targets = advantage.critic_targets(PAID)[PAID.mask]
    assert targets.tolist() == pytest.approx([1.25, 1.25, 1, 1])  # what is still to come
    cut = replace(PAID, end_values=torch.tensor([0.5]))
    targets = advantage.critic_targets(cut)[PAID.mask]
    assert targets.tolist() == pytest.approx([1.75, 1.75, 1.5, 1.5])
    white = replace(advantage, whiten=True)(PAID)[PAID.mask]
    mean, std = sum(expected) / 4, torch.tensor(expected).std().item()
    assert white.tolist() == pytest.approx([(a - mean) / std for a in expected], abs=1e-4)


def test_rewards_on_the_way_in_the_credit_of_groups_and_trees() -> None:
    batch = Batch.from_trees([two_turns((1.0, 0.0), (0.0, 0.5)), two_turns((3.0, 3.0), name="b")])
    of_turns = [2, 5]  # a token of each turn
    centred = GroupAdvantage(baseline="group_mean")(batch)[:, of_turns]
    assert centred.tolist() == [[0.25, 0.25], [-0.25, -0.25], [0, 0]]  # returns 1 and 0.5
    # Both depths have a deviation of 0.25: returns 1 and 0.5; then 0 and 0.5 to come. The last
    # turn of the first row has earned less than that of the second, whatever came before.
    tree = TreeAdvantage(value="child_mean")
    assert tree(batch)[:, of_turns].flatten().tolist() == pytest.approx(
        [1, -1, -1, 1, 0, 0], abs=1e-4
    )
    assert tree.node_values(batch).tolist() == pytest.approx(
        [0, 1, -1, -1, 1, 0, 0, 0], abs=1e-4
    )  # fmt: skip
    # over_parent: no turn has siblings but the first ones
    local = replace(tree, advantage="over_parent")(batch)[:, of_turns].flatten()
    assert local.tolist() == pytest.approx([1, 0, -1, 0, 0, 0], abs=1e-4)


def test_segment_statistics_and_node_values() -> None:
    figures = PLAIN.metrics(BATCH)
    assert figures["credit/num_spans"] == 2 and figures["credit/span_length_mean"] == 2
    assert PLAIN.node_values(BATCH).tolist() == [0.0, 0.5]  # the root, then the turn
    assert GroupAdvantage().metrics(BATCH) == {}


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ValueError, match="critic"):
        PLAIN(replace(BATCH, values=None))
    with pytest.raises(ValueError, match="token_entropies"):
        over(HighEntropy())(replace(BATCH, token_entropies=None))
    with pytest.raises(ValueError, match="must not be empty"):
        Delimiter(text="")


def test_the_two_limits_of_sae() -> None:
    torch.manual_seed(0)
    probabilities = torch.rand(3, 6).clamp(0.01, 0.99)
    batch = Batch.from_trees(
        [of_probabilities(*((tuple(p.tolist()), 1.0, "end") for p in probabilities))]
    )
    batch = replace(batch, values=torch.rand(3, 8))
    never, always = over(LowProbability(threshold=0.0)), over(LowProbability(threshold=1.01))
    assert torch.equal(never(batch), over(Trajectory())(batch))
    assert torch.equal(always(batch), over(Token())(batch))
    assert torch.equal(always.spans(batch), spans.by_token(batch.mask))


def test_the_baselines_of_a_group() -> None:
    batch = Batch.from_trees(
        [
            of_probabilities(((0.5, 0.5), 1.0, "end"), ((0.5,), 0.0, "end")),
            of_probabilities(((0.5,), 3.0, "end"), ((0.5,), 3.0, "end"), name="b"),
        ]
    )

    def of_rows(baseline: Any) -> list[float]:
        tokens = GroupAdvantage(baseline=baseline)(batch)
        return [float(row[mask][0]) for row, mask in zip(tokens, batch.mask, strict=True)]

    assert of_rows("group_mean") == [0.5, -0.5, 0.0, 0.0]
    assert of_rows("leave_one_out") == [1.0, -1.0, 0.0, 0.0]
    assert of_rows("group_normalised") == pytest.approx([0.7071, -0.7071, 0, 0], abs=1e-4)
    assert of_rows("batch_normalised") == pytest.approx([1.2247, -1.2247, 0, 0], abs=1e-4)
    # The raw rewards 1 0 3 3: mean 1.75, squares 6.75, deviation 1.5.
    assert of_rows("batch_scaled") == pytest.approx([1 / 3, -1 / 3, 0, 0], abs=1e-4)
    # Two tokens of 1 and one of 0: a baseline of 2 / 3.
    assert of_rows("length_weighted") == pytest.approx([1 / 3, -2 / 3, 0, 0], abs=1e-6)
    # Tokens 1 1 0 3 3: mean 1.6, squares 7.2, deviation 1.3416.
    white = [(r - 1.6) / 1.8**0.5 for r in (1, 0, 3, 3)]
    assert of_rows("batch_whitened") == pytest.approx(white, abs=1e-4)
