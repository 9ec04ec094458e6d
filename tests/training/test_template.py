"""The template contract: what must agree agrees, and a template that would teach the wrong thing is refused before training."""

import json
import shutil

import pytest
from transformers import AutoModelForCausalLM

from components.models.build import build, load_tokenizer
from components.schema.config import BadInput
from components.training import template
from components.training.template import contract_of, encode, encode_prompts, preflight, require_contract, write_contract

from .conftest import TEMPLATE, make_tokenizer

CHAT = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b c"}, {"role": "user", "content": "d"}, {"role": "assistant", "content": "e"}]


def test_what_counts_is_each_answer_and_its_end_and_nothing_else(tokenizer_folder):
    words = load_tokenizer(tokenizer_folder)
    ((ids, counts),) = encode(words, [CHAT])
    assert words.decode(ids) == "<|user|>a<|end|><|assistant|>b c<|end|><|user|>d<|end|><|assistant|>e<|end|>"
    assert words.decode([t for t, c in zip(ids, counts, strict=True) if c]) == "b c<|end|>e<|end|>"


def test_a_prompt_and_an_answer_are_the_same_tokens_apart_and_together(tokenizer_folder):
    words = load_tokenizer(tokenizer_folder)
    (whole, _), (prompt,) = encode(words, [CHAT[:2]])[0], encode_prompts(words, [CHAT[:1]])
    assert whole == prompt + words("b c<|end|>")["input_ids"]


def model_with(words, model_config, **changes):
    return build(model_config.model_copy(update=changes), words, seed=0)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (TEMPLATE.replace("{% generation %}", "").replace("{% endgeneration %}", ""), "2 assistant turns have 0 stretches|1 assistant turns have 0 stretches"),
        (TEMPLATE.replace("{{ m['content'] + '<|end|>' }}{% endgeneration %}", "{{ m['content'] }}{% endgeneration %}{{ '<|end|>' }}"), "do not train '<|end|>'.*never learn to stop"),
    ],
)
def test_a_template_that_would_teach_the_wrong_tokens_is_refused(tmp_path, model_config, broken, message):
    assert broken != TEMPLATE
    words = load_tokenizer(make_tokenizer(tmp_path, broken))
    with pytest.raises(BadInput, match=message.replace("<|end|>", r"<\|end\|>")):
        preflight(model_with(words, model_config), words)


def test_a_sound_template_and_model_pass(tokenizer_folder, model_config):
    words = load_tokenizer(tokenizer_folder)
    for architecture in ("llama", "qwen2", "mistral"):
        preflight(model_with(words, model_config, architecture=architecture), words)


def test_a_model_that_lets_packed_chats_see_each_other_is_refused(tokenizer_folder, model_config, monkeypatch):
    words = load_tokenizer(tokenizer_folder)

    def leaking(model, counts, input_ids, position_ids):  # what happens with use_cache=True: positions restart, attention does not
        return AutoModelForCausalLM.from_config(model.config).__class__.forward(model, input_ids=input_ids, position_ids=position_ids, use_cache=True).logits[counts]

    monkeypatch.setattr(template, "logits_at", leaking)
    with pytest.raises(BadInput, match="packed chats see each other in architecture 'llama'"):
        model = model_with(words, model_config)
        for p in model.parameters():
            p.data.mul_(4)  # an untrained model hardly attends to anything
        preflight(model, words)


def test_a_folder_with_the_same_contract_is_accepted_and_another_names_what_differs(tokenizer_folder, tmp_path):
    words = load_tokenizer(tokenizer_folder)
    write_contract(words, tmp_path)
    require_contract(tmp_path, words, "reward")
    stored = json.loads((tmp_path / "template.json").read_text())
    for part in contract_of(words):
        (tmp_path / "template.json").write_text(json.dumps({**stored, part: "other"}))
        with pytest.raises(BadInput, match=f"template.json differs in its {part}:"):
            require_contract(tmp_path, words, "reward")


def test_a_changed_template_changes_only_its_own_hash(tokenizer_folder, tmp_path):
    first, second = load_tokenizer(tokenizer_folder), load_tokenizer(make_tokenizer(tmp_path, TEMPLATE + " "))
    assert [part for part, value in contract_of(first).items() if contract_of(second)[part] != value] == ["chat template"]


@pytest.mark.parametrize("stage", ["reward", "ppo"])
def test_later_stages_refuse_a_chat_model_whose_template_was_changed_and_a_model_that_is_none(line, stage, tmp_path, monkeypatch):
    line.of("reward")
    changed = shutil.copytree(line.of("sft"), tmp_path / "sft")
    (changed / "chat_template.jinja").write_text(TEMPLATE + " ")
    monkeypatch.setattr(line, "of", lambda s, whole=line.of: changed if s == "sft" else whole(s))
    with pytest.raises(BadInput, match=f"{stage}: .*differs in its chat template"):
        line.run(stage, tmp_path / "out")
    (changed / "template.json").unlink()
    with pytest.raises(BadInput, match=r"template.json does not exist, so it is not a chat model"):
        line.run(stage, tmp_path / "out")
