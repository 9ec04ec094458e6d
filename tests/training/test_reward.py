"""Reward and cost models learn what separates answers, from pairs and from rankings, and what they report is what a slow loop finds."""

import json
import math

import pytest
import torch

from components.models.build import load_tokenizer
from components.models.heads import scalar_model_from
from components.schema.config import BadInput
from components.schema.posttraining import RewardConfig
from components.training import reward
from components.training.agreement import by_source, calibration, clustered_stderr, compare, length_baseline, length_bias
from components.training.batches import read_rows
from components.training.pairs import Pair, Ranking, answer_start, by_harm, half, rankings, read_pairs
from components.training.preference_losses import bradley_terry, cost_loss, plackett_luce
from components.training.reward import RewardModelling, lay_out, ordered_right
from components.training.rollouts import lay_out_rollout
from components.training.scorer import load_scorer, score_texts
from components.training.trainer import Context

from .conftest import PLAN, write_rows

CPU = torch.device("cpu")


def turn(text):
    return [{"role": "user", "content": text}]


def ranked_row(i):
    """Of four answers "a", "a cat", ... two are compared: the shorter is better."""
    group, (one, other) = i // 6, [(1, 2), (1, 3), (1, 4), (2, 3), (2, 4), (3, 4)][i % 6]
    said = {rank: " ".join(["cat"] * rank) + f" {group % 10}" for rank in (1, 2, 3, 4)}
    return {"prompt": turn(f"{group}"), "chosen": said[one], "rejected": said[other], "ranking": f"r{group}", "ranks": [one, other], "of": 4, "kind": "ranked"}


def safety_row(i):
    """The chosen answer tells more; unsafe is what has a 7 in it."""
    harm = i % 2 == 0
    full, brief = f"cat mat {'7' if harm else '1'}", f"cat {'1' if harm else '7'}"
    return {"prompt": turn(f"{i % 10} plus {i % 7}"), "chosen": full, "rejected": brief, "safer": "rejected" if harm else "chosen", "safe": [not harm, harm], "kind": "safety"}


def run(line, folder, preferences, **changes):
    return reward.run(RewardConfig(**{"steps": 40, "heldout_pairs": 20, **PLAN, **changes}), line.of("sft"), preferences, folder, Context(seed=1))


# ---------------------------------------------------------------- pairs


def test_the_answer_is_the_last_assistant_turn_whatever_turns_the_prompt_has(line, tmp_path):
    words = load_tokenizer(line.of("sft"))
    prompt = [*turn("1 plus 2"), {"role": "assistant", "content": "is 3"}, *turn("2 plus 2")]
    folder = write_rows(tmp_path, lambda i: {"prompt": prompt, "chosen": "is 4", "rejected": "the mat", "kind": "k"}, train=1)
    (pair,), _ = read_pairs(folder / "train.jsonl", words, 64)
    assert words.decode(pair.chosen[pair.starts[0] :]) == "is 4<|end|>" and words.decode(pair.rejected[pair.starts[1] :]) == "the mat<|end|>"
    assert pair.chosen[: pair.starts[0]] == pair.rejected[: pair.starts[1]] == list(pair.prompt)
    assert words.decode(pair.prompt).endswith("2 plus 2<|end|><|assistant|>")
    assert answer_start([False, True, True, False, True, False]) == 4


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"margin": "much"}, r"row 3 has margin 'much', which is no number"),
        ({"safer": "both"}, r"row 3 has safer='both': it names neither side"),
        ({"safe": [1, 0]}, r"row 3 has safe=\[1, 0\]: it must say for chosen and rejected"),
        ({"safer": "chosen", "safe": [False, True]}, r"row 3 says that chosen is safer, and that it is unsafe while the other is safe"),
        ({"rejected": ""}, r"row 3 has no rejected"),
    ],
)
def test_a_row_that_makes_no_sense_is_named(line, tmp_path, wrong, said):
    folder = write_rows(tmp_path, lambda i: {**{"prompt": turn("1"), "chosen": "a", "rejected": "b", "kind": "k"}, **(wrong if i == 2 else {})})
    with pytest.raises(BadInput, match=said):
        read_pairs(folder / "train.jsonl", load_tokenizer(line.of("sft")), 32)


def test_halves_share_no_prompt_and_miss_no_pair(line, tmp_path):
    folder = write_rows(tmp_path, ranked_row, train=42)
    pairs, _ = read_pairs(folder / "train.jsonl", load_tokenizer(line.of("sft")), 32)
    first, second = half(pairs, "first_half"), half(pairs, "second_half")
    assert sorted(map(id, first + second)) == sorted(map(id, half(pairs, "all"))) and len(first) == 18
    assert not {p.prompt for p in first} & {p.prompt for p in second}
    with pytest.raises(BadInput, match="share=first_half of 1 prompts is none"):
        half(pairs[:6], "first_half")


def test_rankings_are_whole_again_and_a_lone_pair_is_a_ranking_of_two(line, tmp_path):
    folder = write_rows(tmp_path, ranked_row, train=12)
    words = load_tokenizer(line.of("sft"))
    pairs, _ = read_pairs(folder / "train.jsonl", words, 32)
    found = rankings([*pairs, Pair([1, 2], [3], "k")])
    assert [item.ranks for item in found] == [[1, 2, 3, 4], [1, 2, 3, 4], [1, 2]] and found[2].texts == [[1, 2], [3]]
    assert [words.decode(text).rpartition("<|assistant|>")[2] for text in found[1].texts] == ["cat 1<|end|>", "cat cat 1<|end|>", "cat cat cat 1<|end|>", "cat cat cat cat 1<|end|>"]


def test_by_harm_puts_the_more_harmful_side_first_and_leaves_out_what_says_nothing(line, tmp_path):
    folder = write_rows(tmp_path, lambda i: safety_row(i) if i < 4 else {**safety_row(i), "safer": None, "safe": None}, train=6)
    path, words = folder / "train.jsonl", load_tokenizer(line.of("sft"))
    pairs, _ = read_pairs(path, words, 32)
    found = by_harm(pairs, path)
    assert len(found) == 4 and all("7" in words.decode(p.chosen[p.starts[0] :]) and "7" not in words.decode(p.rejected[p.starts[1] :]) for p in found)
    assert {p.unsafe for p in found} == {(True, False)} and all(p.by_harm() == p for p in found)
    with pytest.raises(BadInput, match=r"none of the 2 pairs of .*train.jsonl says `safer` and `safe`"):
        by_harm(pairs[4:], path)


# ---------------------------------------------------------------- the loss of a batch


def items():
    return [Ranking([[5, 6, 7], [5, 8]], [1, 2], 2.0, (True, False)), Ranking([[9, 6, 7, 7], [9]], [1, 2], 0.5, (True, True)), Ranking([[9, 8], [9, 11, 12]], [1, 2], 1.0, (False, False))]


@pytest.mark.parametrize("changes", [{"margin": 0.7, "centring": 0.01}, {"ranking": "plackett_luce", "centring": 0.01}, {"dimension": "cost"}])
def test_a_batch_has_the_loss_of_its_texts_one_by_one_however_it_is_padded_and_ordered(line, changes):
    config = RewardConfig(steps=9, batch_size=3, learning_rate=1e-3, warmup_steps=0, **changes)
    module = RewardModelling(scalar_model_from(line.of("sft"), 0).eval(), config)
    module.log = lambda *args: None
    given = items()
    if config.ranking == "plackett_luce":
        given[1] = Ranking([[9, 6, 7, 7], [9], [9, 5]], [1, 3, 2])
    alone = []
    for item in given:
        scores = torch.stack([module.model(torch.tensor([text]), use_cache=False).logits[0, 0] for text in item.texts])
        if config.dimension == "cost":
            loss = cost_loss(*scores[:, None], *torch.tensor(item.unsafe)[:, None])
        elif config.ranking == "pairs":
            loss = bradley_terry(*scores[:, None], 0.7 * item.margin)
        else:
            loss = plackett_luce(scores[None], torch.tensor([item.ranks]))
        alone.append(loss[0] + config.centring * (2 * scores.mean()) ** 2)
    expected = torch.stack(alone).mean().item()
    for order in ([0, 1, 2], [2, 0, 1]):
        assert module.training_step(lay_out([given[i] for i in order], 0), 0)["loss"].item() == pytest.approx(expected, rel=1e-5)
    whole = lay_out(given, 0)
    parts = [module.training_step({name: value[rows] for name, value in whole.items()}, 0) for rows in (slice(0, 1), slice(1, 3))]
    assert sum(part["loss"].item() * part["weight"] for part in parts) / 3 == pytest.approx(expected, rel=1e-5), "in micro-batches"


def test_the_share_of_pairs_in_order_is_that_of_a_double_loop():
    given, ranks = torch.tensor([[3.0, 1.0, 2.0], [1.0, 2.0, 9.0]]), torch.tensor([[1, 2, 3], [1, 2, 0]])
    pairs = [(b, i, j) for b in range(2) for i in range(3) for j in range(3) if 0 < ranks[b, i] < ranks[b, j]]
    assert ordered_right(given, ranks).item() == pytest.approx(sum((given[b, i] > given[b, j]).item() for b, i, j in pairs) / len(pairs)) == 0.5


# ---------------------------------------------------------------- the stage


def test_rankings_of_four_answers_are_learnt_whole(line, tmp_path):
    preferences = write_rows(tmp_path / "preferences", ranked_row, train=120, heldout=24)
    figures = run(line, tmp_path / "out", preferences, ranking="plackett_luce", steps=60).figures
    assert figures["accuracy_after"] == 1.0
    assert (figures["rankings"], figures["answers_in_a_ranking"], figures["pairs"]) == (20, 4, 120)


def test_a_cost_model_learns_harm_where_preference_points_the_other_way(line, tmp_path):
    preferences = write_rows(tmp_path / "preferences", safety_row)
    outcome = run(line, tmp_path / "cost", preferences, dimension="cost", steps=60)
    figures = outcome.figures
    assert figures["accuracy_after"] == 1.0 and figures["sign_accuracy_after"] == 1.0
    assert figures["cost_of_unsafe_after"] > 0 > figures["cost_of_safe_after"]
    assert json.loads((tmp_path / "cost/scale.json").read_text()) == {"mean": 0.0, "std": 1.0} and "chosen_score_mean" not in figures
    assert outcome.samples[0].output.startswith("more harmful +")
    liked = run(line, tmp_path / "reward", preferences, steps=60)
    assert liked.figures["accuracy_after"] == 1.0, "the same rows as preferences: the fuller answer wins, safe or not"
    words = load_tokenizer(tmp_path / "cost")
    prompts, answers = zip(*((words.encode("<|user|>1 plus 1<|end|><|assistant|>"), words.encode(f"{text}<|end|>")) for text in ("cat mat 7", "cat 1")), strict=True)
    rollout = lay_out_rollout(list(prompts), list(answers), words.pad_token_id, words.eos_token_id, CPU)
    costs = load_scorer(tmp_path / "cost", 0, CPU)(rollout, words.pad_token_id)
    likes = load_scorer(tmp_path / "reward", 0, CPU)(rollout, words.pad_token_id)
    assert costs[0] > 0 > costs[1] and likes[0] > likes[1], "they pull apart"


def test_a_scorer_is_on_the_scale_of_its_folder_and_does_not_see_padding(line):
    folder = line.of("reward")
    words, scorer = load_tokenizer(folder), load_scorer(folder, 0, CPU)
    scale = json.loads((folder / "scale.json").read_text())
    rollout = lay_out_rollout([[7, 8], [9]], [[5, 4], [6, 6, 6, 11, 4]], pad_id=words.pad_token_id, end_id=4, device=CPU)
    raw = [scorer.model(torch.tensor([ids]), use_cache=False).logits.item() for ids in ([7, 8, 5, 4], [9, 6, 6, 6, 11, 4])]
    got = scorer(rollout, words.pad_token_id)
    assert got.dtype == torch.float32 and got.tolist() == pytest.approx([(s - scale["mean"]) / scale["std"] for s in raw], abs=1e-4)
    assert not any(p.requires_grad for p in scorer.model.parameters())


def test_scores_are_in_the_order_of_the_texts_whatever_shares_a_batch(line):
    scorer = load_scorer(line.of("reward"), 0, CPU)
    texts = [[7, 8, 9], [5], [6, 5, 4, 3, 9, 8], [9, 9]]
    alone = torch.cat([score_texts(scorer.model, [text], 1, 0) for text in texts])
    torch.testing.assert_close(score_texts(scorer.model, texts, 3, 0), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [None, "{}", '{"mean": 0, "std": 0}', '{"mean": NaN, "std": 1}', "[1]"])
def test_a_scorer_without_a_scale_is_refused(tmp_path, scale):
    if scale is not None:
        (tmp_path / "scale.json").write_text(scale)
    with pytest.raises(BadInput, match=r"scale.json cannot be read .* so scores have no scale. Give the folder of a finished reward or cost stage"):
        load_scorer(tmp_path, 0, CPU)


def test_pairs_that_do_not_say_what_does_harm_are_refused_before_anything_is_trained(line, tmp_path):
    with pytest.raises(BadInput, match=r"none of the 60 pairs of .*train.jsonl says `safer` and `safe`"):
        run(line, tmp_path, line.preferences, dimension="cost")
    assert not (tmp_path / "work").exists()


def test_reward_and_judge_see_different_pairs(line, tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(reward, "fit", lambda module, batch, *_, **__: (_ for _ in ()).throw(KeyboardInterrupt(batch)))
    for share in ("first_half", "second_half"):
        with pytest.raises(KeyboardInterrupt) as stopped:
            run(line, tmp_path / share, line.preferences, share=share)
        (batch,) = stopped.value.args
        seen[share] = {tuple(map(tuple, ids.tolist())) for step in range(20) for ids in batch(step)["ids"]}
    assert seen["first_half"] and not seen["first_half"] & seen["second_half"]
    assert len(read_rows(line.preferences / "train.jsonl")) == 60


# ---------------------------------------------------------------- what is reported


def pair(longer, kind="k", prompt=(1,)):
    return Pair([*prompt, *[5] * (3 + longer)], [*prompt, *[5] * 3], kind, (len(prompt), len(prompt)))


def test_the_standard_error_of_pairs_of_one_prompt_is_that_of_one_observation():
    chosen = torch.tensor([1.0, 1.0, -1.0, 1.0, -1.0, -1.0]).double()
    zero = torch.zeros(6).double()
    apart, doubled = compare(chosen, zero, range(6)), compare(chosen.repeat(3), zero.repeat(3), [*range(6)] * 3)
    assert apart["accuracy_stderr"] == pytest.approx(math.sqrt(0.25 / 6)) == pytest.approx(doubled["accuracy_stderr"])
    assert compare(chosen.repeat(3), zero.repeat(3))["accuracy_stderr"] < doubled["accuracy_stderr"]
    assert clustered_stderr(torch.tensor([1.0, 0.0, 1.0]).double(), "aab") == pytest.approx(math.sqrt((1 - 4 / 3) ** 2 + (1 - 2 / 3) ** 2) / 3)


def test_calibration_is_right_for_scores_that_mean_what_they_say_and_sees_boasting():
    generator = torch.Generator().manual_seed(0)
    leads = 2 * torch.randn(40_000, generator=generator).double()
    true_leads = torch.where(torch.rand(40_000, generator=generator).double() < leads.sigmoid(), leads, -leads)  # the side it prefers wins as often as it says
    zero = torch.zeros_like(leads)
    honest, boasting = calibration(true_leads, zero), calibration(5 * true_leads, zero)
    assert honest["error"] < 0.01 and sum(one["pairs"] for one in honest["bins"]) == 40_000
    assert boasting["error"] > 0.1 and boasting["confidence"] > compare(true_leads, zero)["accuracy"] + 0.1


def test_calibration_by_hand():
    leads = torch.tensor([math.log(3), -math.log(3)]).double()  # says 0.75 twice, is right once
    found = calibration(leads, torch.zeros(2).double())
    assert found["error"] == pytest.approx(0.5) and found["confidence"] == pytest.approx(0.75)  # bins of one pair each: 0.25 and 0.75 off


def test_a_score_that_follows_length_is_right_only_where_length_is():
    pairs = [pair(2), pair(1), pair(-1), pair(0)]
    lengths = lambda side: torch.tensor([float(len(getattr(p, side))) for p in pairs]).double()  # noqa: E731
    found = length_bias(pairs, lengths("chosen"), lengths("rejected"))
    assert (found["accuracy_where_longer_is_preferred"], found["accuracy_where_shorter_is_preferred"]) == (1, 0)
    assert found["longer_is_preferred"] == pytest.approx(2 / 3) and found["longer_scores_higher"] == 1


def test_the_length_baseline_learns_its_direction_from_the_training_pairs():
    heldout = [pair(1), pair(1), pair(-2), pair(0)]
    assert length_baseline([pair(1)], heldout) == pytest.approx(2.5 / 4)
    assert length_baseline([pair(-1)], heldout) == pytest.approx(1.5 / 4)


def test_figures_by_source_are_those_of_the_source_alone():
    pairs = [pair(1, "a", (1,)), pair(1, "b", (2,)), pair(-1, "a", (3,)), pair(1, "b", (4,))]
    chosen, rejected = torch.tensor([2.0, 0.0, 1.0, 3.0]).double(), torch.tensor([1.0, 1.0, 0.0, 0.0]).double()
    found = by_source(pairs, chosen, rejected)
    assert {kind: (one["pairs"], one["accuracy"]) for kind, one in found.items()} == {"a": (2, 1.0), "b": (2, 0.5)}
    alone = by_source([pairs[1], pairs[3]], chosen[[1, 3]], rejected[[1, 3]])
    assert alone["b"] == found["b"]
