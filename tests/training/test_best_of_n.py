"""The best of several answers is learnt, and only it; rounds that are done are not answered again."""

import json
from types import SimpleNamespace

import pytest
import torch

from components.models.build import load, load_tokenizer
from components.schema.config import BadInput
from components.schema.posttraining import BestOfNConfig, RewardTerm
from components.training import best_of_n
from components.training.align import Given
from components.training.best_of_n import answered, learnt, run, winner_of
from components.training.prompts import Question
from components.training.rewards import Judged
from components.training.trainer import Context

PLAN = {
    "method": "best_of_n", "steps": 6, "batch_size": 2, "learning_rate": 3e-3, "warmup_steps": 1, "checkpoint_every_steps": 2,
    "n": 4, "prompts_sampled": 12, "max_new_tokens": 6, "heldout_prompts": 6,
    "prompts": {"source": "chats"}, "rewards": [{"kind": "length", "tokens": 1}],  # the shorter the better
}  # fmt: skip


def config(**changes):
    return BestOfNConfig.model_validate({**PLAN, **changes})


@pytest.fixture
def given(line):
    return Given(line.of("sft"), {}, line.preferences, line.chats, lambda programs: [False] * len(programs))


def outputs(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file() and p.name != "curve.jsonl"}


# ---------------------------------------------------------------- the choice


def test_the_best_wins_the_earlier_of_equals_and_one_that_did_not_end_leaves_its_prompt_out():
    worth = torch.tensor([[1.0, 3.0, 2.0], [2.0, 2.0, 1.0], [0.0, 5.0, 4.0]])
    finished = torch.tensor([[True, True, True], [True, True, True], [True, False, True]])
    assert winner_of(worth, finished) == [1, 0, None]


def test_a_winner_is_learnt_from_its_first_token_to_its_end_and_its_prompt_is_not():
    assert learnt([7, 8], [5, 4]) == ([7, 8, 5, 4], [False, False, True, True])


def ground_answering(answers, rewards):
    """A ground whose policy gives these answers, worth this much."""
    return SimpleNamespace(policy=None, engine=None, stops=[4, 0], rewards=lambda rollout, questions: Judged(torch.tensor(rewards), {}), answers=answers)


@pytest.mark.parametrize(
    ("changes", "expected", "unfinished", "below"),
    [
        ({"unfinished_penalty": 0.0}, [(0, [6, 4], 1.0)], 1, 0),  # the second prompt's best answer did not end
        ({"unfinished_penalty": 5.0}, [(0, [6, 4], 1.0), (1, [9, 4], 0.25)], 0, 0),
        ({"unfinished_penalty": 5.0, "minimum_reward": 0.5}, [(0, [6, 4], 1.0)], 0, 1),
    ],
)
def test_a_round_gives_winners_and_says_how_many_were_left_out_and_why(monkeypatch, changes, expected, unfinished, below):
    answers = [[5, 4], [6, 4], [8, 8], [9, 4]]

    def sample(policy, prompts, copies, stop_ids, **how):
        return best_of_n_rollout([prompt for prompt in prompts for _ in range(copies)], answers)

    monkeypatch.setattr(best_of_n, "sample", sample)
    asked = [Question([7], "", None, None, None), Question([8], "", None, None, None)]
    found = answered(ground_answering(answers, [0.0, 1.0, 2.0, 0.25]), config(n=2, **changes), asked, seed=0)
    assert [(winner["question"], winner["answer"], winner["reward"]) for winner in found["winners"]] == expected
    assert found["seen"] == {"unfinished": unfinished, "below": below, "reward": 3.25}


def best_of_n_rollout(prompts, answers):
    from components.training.rollouts import lay_out_rollout

    return lay_out_rollout(prompts, answers, pad_id=0, end_id=4, device=torch.device("cpu"))


# ---------------------------------------------------------------- the stage


LEARNS = {"steps": 60, "batch_size": 8, "learning_rate": 1e-2, "prompts_sampled": 60, "n": 8, "heldout_prompts": 20}


def test_fine_tuning_on_winners_raises_the_held_out_reward(given, tmp_path):
    outcome = run(config(**LEARNS), given, tmp_path, Context(seed=1))
    figures = outcome.figures
    assert figures["reward_winners"] > figures["reward_sampled"]
    assert figures["reward_gain"] > 2 * figures["reward_gain_stderr"] > 0
    assert figures["kl"] > 0 and figures["length_after"] < figures["length_before"]
    assert len(outcome.samples) == 3 and "before: " in outcome.samples[0].output


def test_winners_are_left_as_chats_with_their_rewards(given, tmp_path):
    figures = run(config(), given, tmp_path, Context(seed=1)).figures
    rows = [json.loads(line) for line in (tmp_path / "winners.jsonl").read_text().splitlines()]
    assert len(rows) == figures["winners"] == figures["prompts"] - figures["left_out_unfinished"] - figures["left_out_below_minimum"]
    assert all([message["role"] for message in row["messages"]][-2:] == ["user", "assistant"] and row["kind"] in ("once", "twice") for row in rows)
    assert sum(row["reward"] for row in rows) / len(rows) == pytest.approx(figures["reward_winners"])
    assert load(tmp_path).config.model_type == "llama" and load_tokenizer(tmp_path)


def test_nobody_to_learn_from_is_an_error_that_says_what_to_change(given, tmp_path):
    with pytest.raises(BadInput, match=r"none of 12 prompts has a winner among 4 answers.*minimum_reward=1000.*Lower minimum_reward"):
        run(config(minimum_reward=1000.0), given, tmp_path, Context(seed=1))


def test_a_verifier_without_references_is_refused_before_anything_is_sampled(given, tmp_path, monkeypatch):
    monkeypatch.setattr(best_of_n, "sample", lambda *_, **__: pytest.fail("sampled"))
    with pytest.raises(BadInput, match=r"none of the \d+ questions has a reference answer with a number"):
        run(config(prompts={"source": "preferences"}, rewards=(RewardTerm(kind="math"),)), given, tmp_path, Context(seed=1))


class Killed(BaseException):
    pass


@pytest.mark.parametrize("where", ["in the second round", "in training"])
def test_a_killed_run_goes_on_where_it_was_and_ends_with_the_same_bytes(given, tmp_path, monkeypatch, where):
    monkeypatch.setattr(best_of_n, "BATCH", 8)  # 4 prompts a round
    whole = run(config(), given, tmp_path / "whole", Context(seed=1))
    rounds = []
    own = best_of_n.sample

    def sample(*given, **how):
        rounds.append(how["seed"])
        if where == "in the second round" and len(rounds) == 2:
            raise Killed
        return own(*given, **how)

    with monkeypatch.context() as patch:
        patch.setattr(best_of_n, "sample", sample)
        if where == "in training":
            step = best_of_n.FineTuning.training_step
            patch.setattr(best_of_n.FineTuning, "training_step", lambda self, batch, i: (_ for _ in ()).throw(Killed()) if i == 3 else step(self, batch, i))
        with pytest.raises(Killed):
            run(config(), given, tmp_path / "parts", Context(seed=1))
    done = 1 if where == "in the second round" else 3
    rounds.clear()
    monkeypatch.setattr(best_of_n, "sample", lambda *given, **how: rounds.append(how["seed"]) or own(*given, **how))
    again = run(config(), given, tmp_path / "parts", Context(seed=1))
    assert len(rounds) == 3 - done  # finished rounds are read, not answered again
    assert outputs(tmp_path / "parts") == outputs(tmp_path / "whole")
    assert again.figures == whole.figures and again.samples == whole.samples
