"""Every kind of architecture is built from the same few fields; what it cannot use is refused, what it decides is told."""

import pytest
import torch

from components.models.architectures import configure, mask_id, resolve, vocabulary
from components.models.build import build
from components.schema.config import BadInput
from components.schema.training import ModelConfig

MIXTURES = {
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": {"num_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v3": {"n_routed_experts": 16, "first_k_dense_replace": 1},
}
DECODERS = [*("llama", "qwen2", "qwen3", "mistral", "gpt2", "gemma2", "gpt_neox", "gptj", "opt", "phi", "falcon", "bloom", "mpt", "olmo2", "starcoder2", "modernbert-decoder"), *MIXTURES]
RECURRENT = ["mamba", "falcon_mamba", "mamba2", "rwkv", "xlstm", "recurrent_gemma", "lfm2"]
ENCODERS = ["bert", "roberta", "modernbert", "electra", "distilbert", "deberta-v2", "mpnet", "eurobert", "camembert"]


def of(architecture, **fields):
    extra = MIXTURES.get(architecture, {})
    return ModelConfig(**{"architecture": architecture, "hidden_size": 32, "layers": 2, "context_tokens": 32, "extra": extra} | fields)


@torch.no_grad()
def reach(model, ids, at):
    """How far the logits in front of a changed token move, and those behind it."""
    model.eval()
    cache = {"use_cache": False} if model.can_generate() else {}
    changed = ids.clone()
    changed[:, at] = 5 + (changed[:, at] - 4) % 200
    moved = (model(input_ids=ids, **cache).logits - model(input_ids=changed, **cache).logits).abs()
    return moved[:, :at].max().item(), moved[:, at + 1 :].max().item()


@pytest.mark.parametrize("architecture", DECODERS + RECURRENT)
def test_a_causal_model_learns_from_its_whole_context_and_never_sees_what_comes(words, architecture):
    model = build(of(architecture), words, seed=0)
    ids = torch.randint(5, 205, (2, 32), generator=torch.Generator().manual_seed(0))
    before, after = reach(model, ids, 16)
    assert before == 0 and after > 0
    logits = model.train()(input_ids=ids, use_cache=False).logits
    assert logits.shape == (2, 32, len(words))
    logits.logsumexp(-1).mean().backward()
    blind = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None and "bias" not in name]
    assert not blind


@pytest.mark.parametrize("architecture", ENCODERS)
def test_an_encoder_reads_a_full_context_in_both_directions_and_has_a_row_for_the_mask(words, architecture):
    model = build(of(architecture), words, seed=0, objective="masked")
    ids = torch.full((2, 32), mask_id(words))
    ids[:, ::2] = torch.randint(5, 205, (2, 16), generator=torch.Generator().manual_seed(0))
    before, after = reach(model, ids, 16)
    assert before > 0 and after > 0
    assert model(input_ids=ids).logits.shape == (2, 32, len(words) + 1)


def test_a_tokenizers_own_mask_token_is_used_where_it_has_one(words, tokenizer_folder):
    from components.models.build import load_tokenizer

    own = load_tokenizer(tokenizer_folder)
    own.add_special_tokens({"mask_token": "[MASK]"})
    assert (mask_id(own), vocabulary(own, "masked")) == (own.mask_token_id, len(own))
    assert (mask_id(words), vocabulary(words, "masked"), vocabulary(words, "next_token")) == (len(words), len(words) + 1, len(words))


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral", "mamba2"])
def test_a_decoder_is_refused_for_a_masked_objective(words, architecture):
    with pytest.raises(BadInput, match=rf"'{architecture}' does not restore masked tokens.*Use an encoder such as modernbert"):
        build(of(architecture), words, seed=0, objective="masked")


@pytest.mark.parametrize("architecture", [*ENCODERS, "xlm", "cpmant"])
def test_what_sees_ahead_is_refused_for_the_next_token(words, architecture):
    with pytest.raises(BadInput, match=rf"'{architecture}' reads in both directions.*Use a decoder such as llama"):
        build(of(architecture), words, seed=0)


def test_a_model_of_images_is_no_language_model(words):
    with pytest.raises(BadInput, match="'vit' is no language model"):
        build(of("vit"), words, seed=0)


def test_an_encoder_whose_tokens_do_not_see_each_other_is_refused(words):
    """MRA attends through a CUDA kernel; without it, it attends to nothing and says nothing."""
    with pytest.raises(BadInput, match="'mra' reads do not see each other"):
        build(of("mra"), words, seed=0, objective="masked")


def test_what_can_be_built_and_cannot_run_is_refused_when_it_is_built(words):
    with pytest.raises(BadInput, match="'deepseek_v3' is built from this section and cannot read"):
        build(of("deepseek_v3", extra={"n_routed_experts": 8, "first_k_dense_replace": 1}), words, seed=0)


@pytest.mark.parametrize("architecture", MIXTURES)
def test_the_feed_forward_width_of_a_mixture_is_each_experts(words, architecture):
    model = build(of(architecture, intermediate_size=96), words, seed=0)
    experts = [p for name, p in model.named_parameters() if "experts" in name and "shared" not in name and p.ndim == 3 and "down_proj" in name]
    assert experts and all(sorted(p.shape[1:]) == [32, 96] for p in experts)


def test_more_experts_for_a_token_than_there_are_is_refused(words):
    with pytest.raises(BadInput, match=r"3 experts are to read each token and there are 2.*num_experts_per_tok"):
        resolve(of("mixtral", extra={"num_local_experts": 2, "num_experts_per_tok": 3}), words)


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("llama", {"num_attention_heads": 3, "intermediate_size": 512, "num_key_value_heads": 3}),  # 8/3 x 192 = 512
        ("gpt2", {"num_attention_heads": 3, "n_inner": 768}),  # 4 x 192
        ("bert", {"num_attention_heads": 3, "intermediate_size": 768}),
        ("mamba2", {"num_heads": 6, "head_dim": 64, "expand": 2}),
        ("mixtral", {"intermediate_size": 256}),  # 512 over two experts
    ],
)
def test_what_is_left_out_follows_the_natural_rule_and_is_told(words, architecture, expected):
    resolved = resolve(of(architecture, hidden_size=192), words, "masked" if architecture == "bert" else "next_token")
    assert {name: getattr(resolved.config, name) for name in expected} == expected
    assert any("heads" in line for line in resolved.told)


def test_what_is_given_is_neither_changed_nor_told(words):
    resolved = resolve(of("llama", heads=4, intermediate_size=80), words)
    assert (resolved.config.num_attention_heads, resolved.config.intermediate_size, resolved.told) == (4, 80, ())


@pytest.mark.parametrize(
    ("architecture", "fields", "message"),
    [
        ("mamba", {"heads": 2}, "heads=2 is given and architecture 'mamba' has no such field"),
        ("mamba", {"intermediate_size": 80}, "intermediate_size=80 is the inner width of 'mamba' and no multiple of hidden_size=32.*Use 64"),
        ("mamba", {"dropout": 0.1}, "dropout=0.1 is given and architecture 'mamba' has no dropout"),
        ("mamba2", {"heads": 1, "intermediate_size": 33}, "no multiple"),
        ("musicgen", {}, "no field for hidden_size"),
    ],
)
def test_a_field_that_an_architecture_cannot_use_is_refused(words, architecture, fields, message):
    with pytest.raises(BadInput, match=message):
        resolve(of(architecture, **fields), words)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bert", "modernbert", "mixtral"])
def test_dropout_acts_in_training_only_and_zero_means_none(words, architecture):
    objective = "masked" if architecture in ENCODERS else "next_token"
    ids = torch.randint(5, 205, (2, 32))
    for share, is_random in ((0.0, False), (0.5, True)):
        model = build(of(architecture, dropout=share), words, seed=0, objective=objective)
        assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits) is not is_random
        model.eval()
        assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)


@pytest.mark.parametrize("architecture", ["mamba", "bloom", "mpt", "rwkv", "gpt2"])
def test_the_context_length_is_found_under_one_name_whatever_the_architecture(words, architecture):
    assert resolve(of(architecture, context_tokens=48), words).config.max_position_embeddings == 48


def test_a_whole_number_becomes_a_float_where_the_architecture_has_one_and_stays_an_integer_elsewhere() -> None:
    config = configure(ModelConfig(architecture="llama", hidden_size=32, layers=2, heads=2, extra={"rms_norm_eps": 1, "num_key_value_heads": 1}), "next_token", 400).config
    assert isinstance(config.rms_norm_eps, float) and isinstance(config.num_key_value_heads, int)
