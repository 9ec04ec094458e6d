"""The preferences step: what lands in its files, and that the reward model reads them."""

import json
from itertools import combinations
from pathlib import Path

import pytest

from components.data.steps import run_step
from components.schema.config import BadInput

from .conftest import HUB, read
from .corpus import config_of
from .test_chats import write_rows

RANKED = [{"prompt": f"p{i}", "answers": [f"{i} {k}" for k in range(4)], "ranks": [2, 1, 4, 3]} for i in range(30)]


def run(folder: Path, rows: list, **parts) -> tuple[dict, list[dict]]:
    run_step("preferences", config_of(preferences=[write_rows(folder / "p.jsonl", rows)], **parts), folder / "preferences")
    return json.loads((folder / "preferences/counts.json").read_text()), [row for side in ("train", "heldout") for row in read(folder / f"preferences/{side}.jsonl")]


def test_every_shape_of_pair_lands_in_one_form(tmp_path):
    rows = [
        {"prompt": "p1", "chosen": "c", "rejected": "r"},
        {"prompt": [{"role": "user", "content": "p2"}], "chosen": [{"role": "assistant", "content": "c"}], "rejected": [{"role": "assistant", "content": "r"}]},
        {"conversations": [{"from": "human", "value": "p3"}], "chosen": {"from": "gpt", "value": "c"}, "rejected": {"from": "gpt", "value": "r"}},
        {"chosen": "\n\nHuman: p4\n\nAssistant: c", "rejected": "\n\nHuman: p4\n\nAssistant: r"},
        {"chosen": [{"role": "user", "content": "p5"}, {"role": "assistant", "content": "c"}], "rejected": [{"role": "user", "content": "p5"}, {"role": "assistant", "content": "r"}]},
    ]
    counts, made = run(tmp_path, rows)
    assert counts["by_shape"] == {"dpo": 2, "hh_rlhf": 1, "implicit_prompt": 1, "sharegpt_pair": 1} and counts["pairs"] == 5
    assert sorted(row["prompt"][0]["content"] for row in made) == ["p1", "p2", "p3", "p4", "p5"]
    assert all((row["prompt"][0]["role"], row["chosen"], row["rejected"]) == ("user", "c", "r") and list(row) == ["prompt", "chosen", "rejected", "kind"] for row in made)


def test_what_does_not_convert_is_listed_and_a_source_of_other_rows_is_refused(tmp_path):
    good = [{"prompt": f"p{i}", "chosen": "c", "rejected": "r"} for i in range(5)]
    counts, _ = run(tmp_path, [*good, {"prompt": "p", "chosen": "same", "rejected": "same"}, good[0], {"prompt": "p", "chosen": "<|user|>", "rejected": "r"}])
    assert {reason: entry["count"] for reason, entry in counts["dropped"].items()} == {"sides_are_equal": 1, "spells_a_special_token": 1, "duplicate": 1}
    assert [(row["where"].rpartition(", ")[2], row["reason"]) for row in read(tmp_path / "preferences/dropped.jsonl")] == [
        ("line 6", "sides_are_equal"), ("line 8", "spells_a_special_token"), ("line 7", "duplicate"),
    ]  # fmt: skip
    with pytest.raises(BadInput, match=r"preferences: .*p\.jsonl: 2 of its first 2 rows cannot be converted: no_known_shape 2 .*Columns seen: prompt, completion, label\..*shapes known: hh_rlhf"):
        run(tmp_path, [{"prompt": "p", "completion": "c", "label": True}] * 2)


def test_no_prompt_of_a_held_out_pair_is_among_the_training_prompts(dataset):
    sides = {side: {row["prompt"][0]["content"] for row in read(dataset / f"preferences/{side}.jsonl")} for side in ("train", "heldout")}
    assert len(sides["heldout"]) > 50 and not sides["train"] & sides["heldout"]


def test_k_ranked_answers_become_pairs_of_which_each_group_comes_back_whole(tmp_path):
    counts, made = run(tmp_path, RANKED, heldout_fraction=0.2)
    assert counts["pairs"] == 30 * 6 == counts["by_shape"]["ranked"]
    groups: dict[str, list[dict]] = {}
    for row in made:
        groups.setdefault(row["ranking"], []).append(row)
    assert len(groups) == 30
    for pairs in groups.values():
        order = {text: rank for pair in pairs for text, rank in zip((pair["chosen"], pair["rejected"]), pair["ranks"], strict=True)}
        number = pairs[0]["prompt"][0]["content"][1:]
        assert [order[f"{number} {k}"] for k in range(4)] == [2, 1, 4, 3] and {pair["of"] for pair in pairs} == {4}
        assert {(p["chosen"], p["rejected"]) for p in pairs} == set(combinations(sorted(order, key=order.get), 2))
    sides = [{row["ranking"] for row in read(tmp_path / f"preferences/{side}.jsonl")} for side in ("train", "heldout")]
    assert sides[0] and sides[1] and not sides[0] & sides[1]


def test_the_reward_model_reads_pairs_of_rankings_as_any_other(dataset, tmp_path):
    from components.models.build import load_tokenizer
    from components.schema.posttraining import PromptsConfig
    from components.training.align import Given
    from components.training.prompts import read_questions
    from components.training.reward import read_pairs

    run(tmp_path, [*RANKED, {"prompt": "q", "chosen": "c", "rejected": "r"}])
    words = load_tokenizer(dataset / "tokenizer")
    pairs, dropped = read_pairs(tmp_path / "preferences/train.jsonl", words, 64)
    rows = read(tmp_path / "preferences/train.jsonl")
    assert (len(pairs), dropped) == (len(rows), 0) and {pair.kind for pair in pairs} == {str(tmp_path / "p.jsonl")}
    assert words.decode(pairs[0].chosen) == f"<|user|>{rows[0]['prompt'][0]['content']}<|end|><|assistant|>{rows[0]['chosen']}<|end|>"
    given = Given(tmp_path, {}, tmp_path / "preferences", tmp_path, lambda programs: [])
    assert len(read_questions(PromptsConfig(), given, words, "train", 64)) == len({row["prompt"][0]["content"] for row in rows})


@pytest.mark.skipif(not HUB.is_dir(), reason="the folder of real hub data is not beside this checkout")
def test_the_real_pairs_convert_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("MODELYARD_HUB_MIRROR", str(HUB))
    run_step("preferences", config_of(preferences=[{"kind": "hub", "id": "llamafactory/DPO-En-Zh-20k", "config": "en"}]), tmp_path / "preferences")
    counts = json.loads((tmp_path / "preferences/counts.json").read_text())
    assert counts["by_shape"] == {"sharegpt_pair": 295} and {reason: entry["count"] for reason, entry in counts["dropped"].items()} == {"duplicate": 5}
