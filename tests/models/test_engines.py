"""An engine is optional: where it is missing the refusal says so, and where it is there it is spoken to as its manual asks."""

import sys
from types import SimpleNamespace

import pytest

from components.models.build import build
from components.models.engines import engine_for
from components.schema.config import BadInput


def test_the_plain_way_needs_no_engine(tmp_path):
    assert engine_for("transformers", tmp_path, context_tokens=64) is None


def test_a_missing_vllm_is_refused_with_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(BadInput, match=r"vllm is asked for and cannot be imported.*use engine=transformers"):
        engine_for("vllm", tmp_path, context_tokens=64)


class FakeLLM:
    """What of vLLM's LLM is used; answers with the prompt's last token and a stop token."""

    def __init__(self, **options):
        self.options, self.calls, self.weights = options, [], {}

    def apply_model(self, change):
        self.calls.append("weights")
        change(SimpleNamespace(load_weights=lambda weights: self.weights.update(weights)))

    def reset_prefix_cache(self):
        self.calls.append("forget")

    def generate(self, prompts, plans, use_tqdm):
        self.plans = plans
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=(prompt["prompt_token_ids"][-1], 4))]) for prompt in prompts]


def test_vllm_gets_the_weights_of_the_step_forgets_what_it_read_with_the_old_ones_and_samples_the_whole_distribution(tmp_path, monkeypatch, config, words):
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=FakeLLM, SamplingParams=lambda **plan: plan))
    engine, model = engine_for("vllm", tmp_path, context_tokens=64), build(config, words, seed=0)
    engine.take(model)
    assert engine.llm.calls == ["weights", "forget"]
    assert set(engine.llm.weights) == set(model.state_dict())
    assert engine.generate([[5, 6], [7]], stop_ids=[4, 0], pad_id=0, max_new_tokens=8, temperature=0.7, seed=3) == [[6, 4], [7, 4]]
    first, second = engine.llm.plans
    assert (first["temperature"], first["top_p"], first["max_tokens"], first["stop_token_ids"]) == (0.7, 1.0, 8, [4, 0])
    assert first["seed"] != second["seed"]
