"""A model of ours as critic: its probabilities against a loop over single rows, and that a batch changes nothing."""

from __future__ import annotations

import pytest
import torch

from components.feedback.local import LocalModel
from components.models.build import load, load_tokenizer
from components.schema.config import BadInput

CHATS = [[{"role": "user", "content": text}] for text in ("A or B?", "Which of these two longer answers would you rather have, A or B?", "B", "x" * 200)]


@pytest.fixture(scope="module")
def model(chat_model):
    return LocalModel(chat_model, 12, 0.0)


def test_a_preference_is_the_models_probability_of_the_first_label_among_the_two(model, chat_model):
    network, words = load(chat_model).eval(), load_tokenizer(chat_model)
    for chat, found in zip(CHATS, model.prefer(CHATS), strict=True):
        ids = words(f"<|user|>{chat[0]['content']}<|end|><|assistant|>", add_special_tokens=False, return_tensors="pt").input_ids
        with torch.no_grad():
            chances = network(input_ids=ids).logits[0, -1].softmax(-1)
        first, second = (chances[words.convert_tokens_to_ids(label)].item() for label in "AB")
        assert found == pytest.approx(first / (first + second), rel=1e-4)
    assert len({round(p, 3) for p in model.prefer(CHATS)}) == 4, "a model that says the same to everything would hide a mistake"


def test_labels_of_several_tokens_count_whole(model, chat_model, monkeypatch):
    monkeypatch.setattr("components.feedback.local.LABELS", ("yes", "no"))
    network, words = load(chat_model).eval(), load_tokenizer(chat_model)
    chances = []
    for label in ("yes", "no"):
        prompt = words(f"<|user|>{CHATS[1][0]['content']}<|end|><|assistant|>", add_special_tokens=False).input_ids
        total = 0.0
        for token in words.encode(label, add_special_tokens=False):
            with torch.no_grad():
                total += network(input_ids=torch.tensor([prompt])).logits[0, -1].double().log_softmax(-1)[token].item()
            prompt = [*prompt, token]
        chances.append(total)
    assert model.prefer(CHATS)[1] == pytest.approx(torch.tensor(chances).softmax(0)[0].item(), rel=1e-4)


def test_a_batch_says_what_each_row_says_alone(model):
    assert model.write(CHATS, seed=0) == [model.write([chat], seed=0)[0] for chat in CHATS]
    assert model.prefer(CHATS) == pytest.approx([model.prefer([chat])[0] for chat in CHATS], abs=1e-6)
    assert model.write([], seed=0) == model.prefer([]) == []


def test_what_is_too_long_gets_no_answer_and_the_others_theirs(model):
    long = [{"role": "user", "content": "y" * 1100}]
    assert model.write([CHATS[0], long, CHATS[2]], seed=0) == [model.write([CHATS[0]], seed=0)[0], None, model.write([CHATS[2]], seed=0)[0]]
    assert [p is None for p in model.prefer([long, CHATS[0]])] == [True, False]


def test_sampled_answers_follow_from_the_seed(chat_model):
    model = LocalModel(chat_model, 12, 1.0)
    assert model.write(CHATS, seed=1) == model.write(CHATS, seed=1) != model.write(CHATS, seed=2)


def test_a_model_without_a_template_is_refused(chat_model, tmp_path):
    import json
    import shutil

    folder = shutil.copytree(chat_model, tmp_path / "bare")
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(BadInput, match=r"feedback: .*bare has no chat template.*finished SFT stage"):
        LocalModel(folder, 12, 0.0)
