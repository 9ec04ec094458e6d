"""What PPO and GRPO share: killed anywhere a run ends the same, it ends early where it should, and it says what it saw."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from components.schema.config import BadInput
from components.schema.posttraining import BandsConfig, GRPOConfig, PPOConfig
from components.schema.recipe import Resources
from components.training import grpo, online, ppo, trainer
from components.training.align import Given
from components.training.grpo import GRPO
from components.training.online import align, comparison, drift, in_chunks, outside, parts
from components.training.ppo import PPO, Critic
from components.training.rollouts import answer_logprobs, lay_out_rollout, sample
from components.training.trainer import Context
from components.training.watch import Watch

from . import toys

CPU = torch.device("cpu")
PROMPTS = [[5, 2], [7, 3], [6, 2, 4], [8, 3]]
PLAN = {
    "iterations": 6,
    "rollout_size": 8,
    "minibatch_size": 4,
    "max_new_tokens": 5,
    "learning_rate": 3e-3,
    "warmup_steps": 2,
    "checkpoint_every_iterations": 2,
    "sample_every_iterations": 3,
}
METHODS = {
    "ppo": {"method": "ppo", "reward_scale": "running", "kl_target": 0.5, "safety": {"limit": -0.5}},
    "ppo with a head": {"method": "ppo", "value_function": "head", "safety": {"limit": -0.5}},
    "grpo": {"method": "grpo", "group_size": 4},
    "rloo": {"method": "rloo", "group_size": 4, "epochs": 1, "minibatch_size": 8},
}


def share(prompt, answer) -> float:
    return sum(word == prompt[-1] for word in answer) / 4


def context(seed=0, notes=None, **resources) -> Context:
    tell = (lambda event: notes.append(event.get("text", ""))) if notes is not None else (lambda event: None)
    return Context(seed=seed, emit=tell, resources=Resources(accelerator="cpu", **resources))


def module_of(method, given, **changes):
    ground = toys.ground(share, PROMPTS, costs=toys.judged_by(lambda prompt, answer: len(answer) / 4 - 1) if METHODS[method]["method"] == "ppo" else None)
    plan = {**PLAN, **METHODS[method], **changes}
    if METHODS[method]["method"] == "ppo":
        critics = {"reward": Critic(toys.scalar_model(1)), "cost": Critic(toys.scalar_model(2))} if method == "ppo" else {}
        return PPO(ground, critics, PPOConfig(**plan), given)
    return GRPO(ground, GRPOConfig(**plan), given)


def trained(method, out, given=None, **changes):
    given = given or context()
    module = module_of(method, given, **changes)
    return align(module, out, given), module


def same(module, other) -> bool:
    states = module.state_dict(), other.state_dict()
    return states[0].keys() == states[1].keys() and all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def outputs(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


# ---------------------------------------------------------------- exact resume


class Killed(BaseException):
    """Stands for the end of the process."""


def dies_at(monkeypatch, place, count):
    """Die the count-th time that this function is called."""
    holder, name = place
    original, calls = getattr(holder, name), []

    def die(*args, **options):
        calls.append(None)
        if len(calls) == count:
            raise Killed
        return original(*args, **options)

    monkeypatch.setattr(holder, name, die)


@pytest.fixture(scope="module")
def in_one_go(tmp_path_factory):
    made = {}

    def of(method):
        if method not in made:
            folder = tmp_path_factory.mktemp(method)
            made[method] = (folder, *trained(method, folder))
        return made[method]

    return of


PLACES = {  # while it samples (the first sampling is the measurement before), while it judges, in the middle of its updates, at the end
    "sampling": (online, "sample", 5),
    "taking stock": (online.Online, "watch", 4),
    "updating": (online.Online, "step_over", 6),
    "measuring afterwards": (online, "comparison", 1),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("place", PLACES)
def test_a_run_killed_anywhere_ends_with_the_same_bits_and_figures(method, place, in_one_go, tmp_path, monkeypatch):
    folder, whole, module = in_one_go(method)
    with monkeypatch.context() as patch:
        holder, name, count = PLACES[place]
        dies_at(patch, (holder, name), count)
        with pytest.raises(Killed):
            trained(method, tmp_path)
    again, other = trained(method, tmp_path)
    assert same(module, other)
    assert again.figures == whole.figures and again.samples == whole.samples
    assert module.readings == other.readings and len(other.readings) == 6
    assert outputs(tmp_path) == outputs(folder)
    assert [json.loads(line)["iteration"] for line in (tmp_path / "watch.jsonl").read_text().splitlines()] == [1, 2, 3, 4, 5, 6]


SCRIPT = """
import sys, torch
from pathlib import Path
torch.set_num_threads(1)
from tests.training.test_online import trained
aligned, module = trained(sys.argv[1], Path(sys.argv[2]), iterations=40)
torch.save(module.state_dict(), Path(sys.argv[2]) / "state.pt")
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_killed_by_the_system_at_any_moment_it_ends_with_the_same_bits(method, tmp_path):

    def start() -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-c", SCRIPT, method, tmp_path], cwd=Path(__file__).parents[2], env={**os.environ, "OMP_NUM_THREADS": "1"})

    curve = tmp_path / "work" / "curve.jsonl"
    for wanted in (3, 9, 20, 33):
        with start() as process:
            while not curve.exists() or curve.read_bytes().count(b"\n") < wanted:
                assert process.poll() is None, "it ended too early"
                time.sleep(0.003)
            process.kill()
            assert process.wait() == -signal.SIGKILL
    with start() as process:
        assert process.wait() == 0
    _, module = trained(method, tmp_path / "whole", iterations=40)
    parts = torch.load(tmp_path / "state.pt")
    assert all(torch.equal(value, parts[name]) for name, value in module.state_dict().items())
    assert (tmp_path / "curve.jsonl").read_bytes() == (tmp_path / "whole" / "curve.jsonl").read_bytes()


def test_how_many_rows_stand_in_memory_at_once_changes_rounding_alone(in_one_go, tmp_path):
    _, _, module = in_one_go("grpo")
    _, other = trained("grpo", tmp_path, context(micro_batch_size=1))
    for name, value in module.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, rtol=1e-3, atol=1e-4)


# ---------------------------------------------------------------- ending early


def test_a_band_names_what_has_left_it():
    numbers = {"kl": 2.0, "entropy": 1.0}
    assert outside(numbers, BandsConfig()) is None
    assert outside(numbers, BandsConfig(kl_max=2.0, entropy_min=1.0, entropy_max=1.0)) is None
    assert outside(numbers, BandsConfig(kl_max=1.5)).startswith("kl 2.000 is above bands.kl_max = 1.5")
    assert outside(numbers, BandsConfig(entropy_min=1.5)).startswith("entropy 1.000 is below bands.entropy_min = 1.5")
    assert outside(numbers, BandsConfig(entropy_max=0.5)).startswith("entropy 1.000 is above bands.entropy_max = 0.5")


EARLY = {"iterations": 40, "learning_rate": 2e-2, "bands": {"kl_max": 0.5}, "checkpoint_every_iterations": 3}


@pytest.mark.parametrize("method", ["ppo", "grpo"])
def test_a_run_ends_cleanly_where_kl_leaves_its_band_with_the_policy_as_it_then_is(method, tmp_path):
    notes = []
    aligned, module = trained(method, tmp_path, context(notes=notes), **EARLY)
    ended = aligned.figures["ended_early"]
    assert 1 < ended["iteration"] == len(module.readings) < 40
    assert "above bands.kl_max = 0.5" in ended["why"]
    assert any(note.startswith(f"ended after iteration {ended['iteration']} of 40: kl") for note in notes)
    assert [reading["kl"] > 0.5 for reading in module.readings] == [False] * (len(module.readings) - 1) + [True]
    curve = [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    assert len(curve) == ended["iteration"]
    unbanded, other = trained(method, tmp_path / "plain", **{**EARLY, "iterations": ended["iteration"] - 1, "bands": {}})
    assert same(module, other) or method == "ppo"  # of a plain run of one iteration less; PPO's prices have followed the last rollout
    assert all(torch.equal(a, b) for a, b in zip(module.policy.parameters(), other.policy.parameters(), strict=True))
    assert "ended_early" not in unbanded.figures


@pytest.mark.parametrize("place", [("step_over", 6), ("measure", 1), "after"])
def test_a_run_that_ends_early_ends_at_the_same_iteration_after_a_kill(place, tmp_path, monkeypatch):
    whole, module = trained("grpo", tmp_path / "whole", **EARLY)
    with monkeypatch.context() as patch:
        dies_at(patch, (online, "comparison") if place == "after" else (online.Online, place[0]), 1 if place == "after" else place[1])
        with pytest.raises(Killed):
            trained("grpo", tmp_path / "parts", **EARLY)
    if place == "after":
        monkeypatch.setattr(trainer, "_run_trainer", lambda *_: pytest.fail("trained again"))
    again, other = trained("grpo", tmp_path / "parts", **EARLY)
    assert again.figures == whole.figures and same(module, other)
    assert outputs(tmp_path / "parts") == outputs(tmp_path / "whole")


def test_a_kill_between_the_decision_to_end_and_its_checkpoint_changes_nothing(tmp_path, monkeypatch):
    whole, module = trained("grpo", tmp_path / "whole", **EARLY)
    with monkeypatch.context() as patch:
        original = Watch._end_early

        def die(self, lightning):
            original(self, lightning)
            raise Killed

        patch.setattr(Watch, "_end_early", die)
        with pytest.raises(Killed):
            trained("grpo", tmp_path / "parts", **EARLY)
    assert (tmp_path / "parts/work/ended.json").exists()
    again, other = trained("grpo", tmp_path / "parts", **EARLY)
    assert again.figures == whole.figures and same(module, other)


# ---------------------------------------------------------------- what is measured and told


def rollout_of(ground, n=8, seed=3):
    asked = [ground.questions[i % len(ground.questions)] for i in range(n)]
    return sample(ground.policy, [q.ids for q in asked], stop_ids=ground.stops, max_new_tokens=6, temperature=1.0, seed=seed)


def test_assessing_in_chunks_changes_nothing(monkeypatch):
    ground = toys.ground(share, PROMPTS)
    rollout = rollout_of(ground)
    whole = answer_logprobs(ground.policy, rollout.ids, rollout.counts, 1.0)
    monkeypatch.setattr(online, "FORWARD_ROWS", 3)
    for a, b in zip(whole, in_chunks(lambda ids, counts: answer_logprobs(ground.policy, ids, counts, 1.0), rollout), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_parts_hold_every_row_once_and_like_with_like():
    rollout = lay_out_rollout([[2]] * 5, [[3] * n for n in (5, 1, 4, 2, 3)], toys.PAD, toys.END, CPU)
    assert parts(rollout, range(5), 2) == [[1, 3], [4, 2], [0]]
    assert parts(rollout, [0, 1], 8) == [[1, 0]]


def test_drift_is_the_kl_by_definition_and_some_rows_are_those_rows_of_the_whole():
    ground = toys.ground(share, PROMPTS)
    for parameter in ground.policy.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    rollout = rollout_of(ground)
    whole = drift(ground, rollout, 0.7)
    k1, k3, nats = [], [], []
    for prompt, answer in zip(rollout.prompts, rollout.answers, strict=True):
        text = torch.tensor([prompt + answer])
        p, q = (torch.log_softmax(m(text, use_cache=False).logits[0, len(prompt) - 1 : -1] / 0.7, -1) for m in (ground.policy, ground.reference))
        own = (p - q).gather(1, torch.tensor(answer).unsqueeze(1))
        k1.append(own.sum().item())
        k3.append((own.neg().exp() - 1 + own).sum().item())
        nats += (-(p.exp() * p).sum(-1)).tolist()
    assert whole.numbers == pytest.approx({"kl": sum(k1) / 8, "kl_k3": sum(k3) / 8, "entropy": sum(nats) / len(nats)}, rel=1e-3)
    some = drift(ground, rollout, 0.7, range(0, 8, 4), None)
    torch.testing.assert_close(some.logp[[0, 4]], whole.logp[[0, 4]], rtol=1e-4, atol=1e-5)
    assert (some.logp[[1, 2, 3, 5, 6, 7]] == 0).all()
    assert some.numbers["kl"] == pytest.approx((k1[0] + k1[4]) / 2, rel=1e-3)


def test_a_gain_comes_with_the_error_of_the_paired_difference():
    others = dict.fromkeys(("kl", "kl_stderr", "kl_per_token", "kl_k3_per_token", "entropy", "length", "finished", "repetition"), 1.0)
    figures = comparison({"worth": {"reward": [0.0, 10.0, 20.0]}, **others}, {"worth": {"reward": [1.0, 12.0, 23.0]}, **others})
    assert figures["reward_gain"] == pytest.approx(2)
    assert figures["reward_gain_stderr"] == pytest.approx(1 / 3**0.5)


def test_a_question_is_asked_in_groups_and_all_are_asked_before_one_comes_again(tmp_path, monkeypatch):
    asked = []
    original = online.sample
    monkeypatch.setattr(online, "sample", lambda policy, prompts, **how: asked.append([tuple(p) for p in prompts]) or original(policy, prompts, **how))
    trained("grpo", tmp_path, iterations=2, sample_every_iterations=0)
    rounds = asked[1:3]  # the first and the last are the measurements
    assert all(row[i] == row[i + 1] == row[i + 2] == row[i + 3] for row in rounds for i in (0, 4))
    assert {row[i] for row in rounds for i in (0, 4)} == {tuple(p) for p in PROMPTS}


def test_samples_stand_beside_those_from_before(tmp_path):
    trained("grpo", tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [3, 3, 3, 6, 6, 6]
    assert [row["sample"]["prompt"] for row in rows[:3]] == [row["sample"]["prompt"] for row in rows[3:]]
    assert [row["sample"]["before"] for row in rows[:3]] == [row["sample"]["before"] for row in rows[3:]]
    assert [row["sample"]["now"] for row in rows[:3]] != [row["sample"]["now"] for row in rows[3:]]


def test_a_reward_that_pays_for_length_is_suspected_once_and_stands_in_the_figures(tmp_path):
    ground = toys.ground(lambda prompt, answer: float(len(answer)), PROMPTS)
    notes, plan = (
        [],
        {
            **PLAN,
            **METHODS["grpo"],
            "iterations": 25,
            "rollout_size": 32,
            "minibatch_size": 16,
            "max_new_tokens": 12,
            "learning_rate": 5e-3,
            "unfinished_penalty": 0.0,
            "kl_coef": 0.0,
        },
    )
    given = context(notes=notes)
    figures = align(GRPO(ground, GRPOConfig(**plan), given), tmp_path, given).figures
    assert "the reward follows length" in figures["suspicions"]["length"]["why"]
    assert sum("the reward follows length" in note for note in notes) == 1


# ---------------------------------------------------------------- the stages


def test_a_recipe_without_the_model_that_is_to_judge_is_refused_before_anything_is_loaded(line, tmp_path):
    given = Given(line.of("sft"), {}, line.preferences, line.chats, lambda programs: [])
    with pytest.raises(BadInput, match=r"an answer is to be judged by the reward model, and the recipe has none.*Add a section `reward`"):
        grpo.run(GRPOConfig(iterations=1, method="grpo"), given, tmp_path, context())
    with pytest.raises(BadInput, match="judged by the cost model"):
        ppo.run(PPOConfig(iterations=1, safety={}), line.given(), tmp_path, context())


def test_the_stages_leave_a_chat_model_with_its_contract_and_measure_by_a_judge_and_a_verifier(line, tmp_path):
    scorers = {"reward": line.of("reward"), "cost": line.of("reward"), "judge": line.of("reward")}
    given = Given(line.of("sft"), scorers, line.preferences, line.chats, lambda programs: [])
    small = {"iterations": 2, "rollout_size": 8, "minibatch_size": 4, "max_new_tokens": 6, "heldout_prompts": 4}
    rewards = {"rewards": [{"kind": "model"}, {"kind": "math", "weight": 2.0}], "prompts": {"source": "chats"}}
    for stage, config in ((grpo, GRPOConfig(**small, **rewards, method="grpo", group_size=4)), (ppo, PPOConfig(**small, **rewards, safety={"limit": 3.0}))):
        out = tmp_path / config.stage
        out.mkdir()
        figures = stage.run(config, given, out, context()).figures
        assert {"model.safetensors", "template.json", "watch.jsonl", "curve.jsonl"} <= {path.name for path in out.iterdir()}
        assert {"reward_gain", "reward_model_before", "reward_math_after", "judge_gain", "kl", "repetition_after", "suspicions"} <= set(figures)
        assert figures["judge_before"] == pytest.approx(figures["reward_model_before"], rel=1e-4)
        assert ("cost_before" in figures and figures["cost_limit"] == 3.0) == (config.stage == "ppo")
