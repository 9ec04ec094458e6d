"""The feedback file: what is refused, and what is part of a dataset's identity."""

from pathlib import Path

import pytest

from components.schema.config import BadInput
from components.schema.feedback import FeedbackConfig

ROOT = Path(__file__).parents[2]
PLAIN = {"name": "x", "policy": "p", "critic": {"model": "m"}, "constitution": "c.yaml", "prompts": "p.jsonl"}


def test_the_file_beside_the_recipes_is_read_with_overrides():
    config = FeedbackConfig.load(ROOT / "recipes/feedback/tiny.yaml", ["critic.url=http://127.0.0.1:1/v1", "max_prompts=3"])
    assert (config.name, config.critic.url, config.max_prompts) == ("tiny", "http://127.0.0.1:1/v1", 3)


@pytest.mark.parametrize(
    "sets, message",
    [
        (["critic.modle=x"], "critic.modle: unknown key.*Did you mean `model`"),
        (["min_preference=0.4", "revisions=0"], r"2 problem\(s\).*nothing was started"),
        (["critic.url=judge.example/v1"], "critic: url 'judge.example/v1' is no address of an endpoint"),
        (["critic.url=https://me:secret@judge.example/v1"], "url holds a name, a password or a query"),
        (["name=Big Name"], "name"),
    ],
)
def test_what_cannot_be_is_refused_with_every_problem(sets, message):
    with pytest.raises(BadInput, match=f"(?s){message}"):
        FeedbackConfig.load(ROOT / "recipes/feedback/tiny.yaml", sets)


def test_a_file_that_is_none_is_refused(tmp_path):
    for text, message in (("[1", "cannot be read"), ("- a", "holds list, not a mapping")):
        (tmp_path / "f.yaml").write_text(text)
        with pytest.raises(BadInput, match=message):
            FeedbackConfig.load(tmp_path / "f.yaml")
    with pytest.raises(BadInput, match=r"gone\.yaml cannot be read"):
        FeedbackConfig.load(tmp_path / "gone.yaml")


@pytest.mark.parametrize("critic", [{"model": "m"}, {"model": "m", "url": "https://judge.example/v1", "concurrency": 9, "temperature": 0.5}])
def test_a_config_comes_back_whole_from_its_two_parts(critic):
    config = FeedbackConfig.model_validate({**PLAIN, "critic": critic, "seed": 3})
    assert FeedbackConfig.joined(*config.parted()) == config


def test_where_an_endpoint_is_and_how_it_is_reached_is_not_what_was_asked_for():
    def defining(**critic):
        return FeedbackConfig.model_validate({**PLAIN, "critic": {"model": "m", "url": "https://a/v1", **critic}}).parted()[0]

    assert defining() == defining(url="https://b/v1", concurrency=9, timeout_s=1, retries=0, key_variable="K")
    assert defining() != defining(model="n") and defining() != defining(temperature=1.0)
    local = FeedbackConfig.model_validate(PLAIN)
    assert local.parted()[0] == FeedbackConfig.model_validate({**PLAIN, "critic": {"model": "elsewhere"}, "policy": "q", "name": "y"}).parted()[0], (
        "folders are known by their content"
    )
