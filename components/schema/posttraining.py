"""The post-training sections of a recipe: supervised fine-tuning, reward and cost model, alignment by PPO, GRPO, DPO or best-of-N."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from components.schema.config import Config, Fraction
from components.schema.training import OptimConfig

# ---------------------------------------------------------------- supervised fine-tuning


class LoraConfig(Config):
    """Low-rank adapters beside frozen matrices (Hu et al. 2021, arXiv:2106.09685); merged into a plain checkpoint at the end."""

    rank: PositiveInt = 8
    """Rank of each update."""
    alpha: PositiveFloat = 16.0
    """The update is scaled by alpha / rank."""
    dropout: Fraction = 0.0
    """Share of the adapter's inputs that training drops."""
    layers: str = "all-linear"
    """Regular expression on module names, or all-linear: every linear layer of the blocks."""


class TaskConfig(Config):
    """A head in place of the language model's, for a task with one right answer."""

    kind: Literal["classification", "question_answering"]
    """classification: one label for a text. question_answering: the span of the context that answers (Rajpurkar et al. 2016, arXiv:1606.05250)."""
    labels: tuple[str, ...] = ()
    """Names of the classes, in order; empty = those that occur in the training rows, sorted."""


class SFTConfig(OptimConfig):
    """Supervised fine-tuning on chats; the loss counts the assistant's tokens and its end-of-turn token only."""

    heldout_chats: PositiveInt = 256
    """Held-out chats on which the loss is measured before and after."""
    mix: dict[str, PositiveFloat] = {}
    """Weight of each kind of chat, relative to its share of the rows (2 = drawn twice as often, 0.5 = half); kinds not named keep 1."""
    train_layers: str | None = None
    """Regular expression on parameter names: only these change. Empty = all."""
    lora: LoraConfig | None = None
    """Train low-rank adapters instead of the weights."""
    neftune_alpha: NonNegativeFloat = 0.0
    """Uniform noise on the input embeddings, of size alpha / sqrt(tokens * width) (NEFTune, Jain et al. 2023, arXiv:2310.05914); 0 = none."""
    task: TaskConfig | None = None
    """Train a head for a task instead of chatting; the line then ends with it."""

    @model_validator(mode="after")
    def _changes_weights_one_way(self) -> SFTConfig:
        if self.lora and self.train_layers:
            raise ValueError("lora freezes the weights and train_layers trains some of them: they contradict each other. Keep one (lora.layers says where adapters stand)")
        return self


# ---------------------------------------------------------------- reward and cost models


class RewardConfig(OptimConfig):
    """A scalar head learns which answers people prefer (Ouyang et al. 2022, arXiv:2203.02155), or which do harm."""

    dimension: Literal["preference", "cost"] = "preference"
    """preference: which answer is better. cost: which does more harm, positive where an answer is unsafe (Dai et al. 2023, arXiv:2310.12773); it needs
    pairs that say `safer` and `safe`."""
    ranking: Literal["pairs", "plackett_luce"] = "pairs"
    """pairs: Bradley-Terry on each pair. plackett_luce: the likelihood of each whole ranking, where pairs come from K ranked answers; a pair alone is a ranking of two."""
    margin: NonNegativeFloat = 0.0
    """The chosen side must lead by this much; times the pair's own `margin` where its row has one (Touvron et al. 2023, arXiv:2307.09288)."""
    centring: NonNegativeFloat = 0.0
    """Weight of (chosen + rejected)^2, which keeps scores around 0 (Eisenstein et al. 2023, arXiv:2312.09244; they take 0.01)."""
    share: Literal["all", "first_half", "second_half"] = "all"
    """Which training pairs it sees; a judge that alignment must not please by accident sees other pairs than the reward model."""
    heldout_pairs: PositiveInt = 400
    """Held-out pairs on which accuracy is measured before and after."""

    @model_validator(mode="after")
    def _fits_its_dimension(self) -> RewardConfig:
        told = [name for name, asked in (("margin", self.margin), ("centring", self.centring), ("ranking", self.ranking != "pairs")) if asked]
        if self.dimension == "cost" and told:
            raise ValueError(f"dimension cost has a loss of its own, and {', '.join(told)} would be ignored. Remove it")
        if self.ranking == "plackett_luce" and self.margin:
            raise ValueError("margin is for pairs, and ranking is plackett_luce: it would be ignored. Remove one of them")
        return self


# ---------------------------------------------------------------- what an answer is worth


class RewardTerm(Config):
    """One part of an answer's reward."""

    kind: Literal["model", "math", "code", "format", "length"]
    """model: the reward model's normalised score. math: 1 where the last number is the right one. code: share of the unit tests that pass in the sandbox.
    format: 1 where the whole answer matches `pattern`. length: minus 1 for each `tokens` tokens."""
    weight: float = 1.0
    """Factor in the sum."""
    pattern: str | None = None
    """Regular expression (kind format)."""
    tokens: PositiveInt = 64
    """Tokens that cost 1 (kind length)."""

    @model_validator(mode="after")
    def _has_its_pattern(self) -> RewardTerm:
        if (self.kind == "format") != (self.pattern is not None):
            raise ValueError("a reward of kind format needs `pattern`, and no other kind has one: the answer could not be judged. Give pattern with kind: format")
        return self


class PromptsConfig(Config):
    """What is answered in training."""

    source: Literal["preferences", "chats"] = "preferences"
    """Prompts of the preference pairs; or of the chats, up to the last answer, which verifiers then know."""
    kinds: tuple[str, ...] = ()
    """Only rows of these kinds; empty = all."""


class SafetyConfig(Config):
    """Expected cost is held under a limit by a Lagrange multiplier (Safe RLHF, Dai et al. 2023, arXiv:2310.12773)."""

    limit: float = 0.0
    """Mean cost of an answer that is allowed, in the cost's own units (a cost model is positive where an answer is unsafe)."""
    cost: tuple[RewardTerm, ...] = (RewardTerm(kind="model"),)
    """What an answer costs; kind model is the recipe's cost model."""
    multiplier: PositiveFloat = 1.0
    """The multiplier at the start."""
    learning_rate: PositiveFloat = 0.1
    """Steps of log(multiplier) by the violation, one each iteration."""
    memory: Fraction = 0.9
    """Decay of the running mean of the cost that the multiplier follows."""


class BandsConfig(Config):
    """Where training ends early, with the policy as it then is."""

    kl_max: PositiveFloat | None = None
    """Nats an answer has moved from the model it began as; empty = no limit."""
    entropy_min: NonNegativeFloat | None = None
    """Nats a token; below it the policy says one thing only."""
    entropy_max: PositiveFloat | None = None
    """Nats a token; above it the policy babbles."""


# ---------------------------------------------------------------- alignment


class OnlineConfig(Config):
    """What PPO and GRPO share: rounds of answering, judging and updating."""

    iterations: PositiveInt
    """Rounds of sampling and updating."""
    rollout_size: PositiveInt = 64
    """Answers sampled before each round of updates."""
    minibatch_size: PositiveInt = 32
    """Answers in each optimizer step; must divide rollout_size."""
    epochs: PositiveInt = 2
    """Passes over each round's answers."""
    max_new_tokens: PositiveInt = 64
    """Longest answer; one that has not ended by then is charged `unfinished_penalty`."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature of the rollouts."""
    learning_rate: PositiveFloat = 3e-5
    """Peak learning rate, held constant after warm-up."""
    warmup_steps: NonNegativeInt = 5
    """Optimizer steps of linear warm-up."""
    kl_coef: NonNegativeFloat = 0.05
    """Price, in reward units per nat, of moving away from the SFT model. 0 = unregularised."""
    clip_range: PositiveFloat = 0.2
    """The probability ratio counts only within 1 +- this."""
    unfinished_penalty: NonNegativeFloat = 1.0
    """Reward taken from an answer without an end-of-turn token."""
    grad_clip_norm: PositiveFloat = 1.0
    """Gradients are scaled down to at most this global norm."""
    prompts: PromptsConfig = PromptsConfig()
    """What is answered."""
    rewards: tuple[RewardTerm, ...] = (RewardTerm(kind="model"),)
    """What an answer is worth: the weighted sum of these."""
    bands: BandsConfig = BandsConfig()
    """Where training ends early."""
    heldout_prompts: PositiveInt = 128
    """Held-out prompts on which reward and KL are measured before and after."""
    sample_every_iterations: NonNegativeInt = 0
    """Write down answers to the same held-out prompts, beside those from before; 0 = at the end only."""
    checkpoint_every_iterations: PositiveInt = 5
    """A killed run goes on from the last multiple of this many iterations."""

    @model_validator(mode="after")
    def _minibatches_divide(self) -> OnlineConfig:
        if self.rollout_size % self.minibatch_size:
            fits = [m for m in range(1, self.rollout_size + 1) if self.rollout_size % m == 0]
            raise ValueError(
                f"rollout_size={self.rollout_size} is not a multiple of minibatch_size={self.minibatch_size}: the last "
                f"{self.rollout_size % self.minibatch_size} answers of every round would never train. Use minibatch_size in {fits}"
            )
        return self

    @property
    def needs_scorer(self) -> bool:
        return any(term.kind == "model" for term in self.rewards)


class PPOConfig(OnlineConfig):
    """Align the chat model against a reward (Schulman et al. 2017, arXiv:1707.06347; Ziegler et al. 2019, arXiv:1909.08593)."""

    stage: ClassVar[str] = "ppo"
    method: Literal["ppo"] = "ppo"
    """Proximal policy optimisation, with a value function."""
    value_function: Literal["model", "head"] = "model"
    """model: a model of its own, begun as the reward model. head: a layer on the policy's own trunk, in about half the time and memory; what it learns pulls at the policy too."""
    value_clip_range: PositiveFloat = 0.2
    """The value may move at most this far from its old estimate before its loss stops counting."""
    value_coef: NonNegativeFloat = 0.1
    """Weight of the value loss beside the policy loss."""
    gamma: Fraction = 1.0
    """Discount per token."""
    gae_lambda: Fraction = 0.95
    """GAE's trade between bias and variance (Schulman et al. 2016, arXiv:1506.02438)."""
    kl_estimator: Literal["k1", "k3"] = "k1"
    """What a token's KL is charged by: k1 = log p/q, unbiased; k3 = q/p - 1 - log q/p, never negative. Both are logged."""
    kl_target: PositiveFloat | None = None
    """Nats an answer: kl_coef then follows the KL towards it (Ziegler et al. 2019, section 2.2). Empty = kl_coef stays."""
    kl_horizon: PositiveInt = 2000
    """Answers over which the adaptive coefficient reacts."""
    reward_scale: Literal["none", "running"] = "none"
    """running: the whole reward is divided by the running standard deviation of what was seen. A reward model's score is on its own held-out scale in any case."""
    safety: SafetyConfig | None = None
    """Hold a cost under a limit; empty = none."""

    @property
    def needs_cost_model(self) -> bool:
        return bool(self.safety and any(term.kind == "model" for term in self.safety.cost))


class GRPOConfig(OnlineConfig):
    """Align by comparing several answers to one prompt: GRPO (Shao et al. 2024, arXiv:2402.03300) or RLOO (Ahmadian et al. 2024, arXiv:2402.14740). No value model."""

    model_config = ConfigDict(title="GRPO, RLOO")
    stage: ClassVar[str] = "grpo"
    method: Literal["grpo", "rloo"] = "grpo"
    """grpo: an answer's reward minus its group's mean, over the group's standard deviation. rloo: minus the mean of the others of its group."""
    group_size: Annotated[int, Field(ge=2)] = 8
    """Answers to each prompt; must divide rollout_size."""
    normalise_by_std: bool = True
    """Divide a group's advantages by its standard deviation (method grpo). Dr. GRPO (Liu et al. 2025, arXiv:2503.20783) does not: it weighs easy and hard prompts up."""
    length_normalisation: Literal["answer", "batch", "constant"] = "answer"
    """answer: the mean over each answer's tokens, then over answers (GRPO; long wrong answers count less). batch: over all tokens. constant: the sum over
    max_new_tokens (Dr. GRPO, and RLOO as published)."""

    @model_validator(mode="after")
    def _groups_divide(self) -> GRPOConfig:
        if self.rollout_size % self.group_size:
            raise ValueError(f"rollout_size={self.rollout_size} is not a multiple of group_size={self.group_size}: the last group would be smaller. Use a multiple of {self.group_size}")
        return self


class DPOConfig(OptimConfig):
    """Learn from preference pairs without sampling: DPO (Rafailov et al. 2023, arXiv:2305.18290) and its family."""

    model_config = ConfigDict(title="DPO, IPO, KTO, ORPO")
    stage: ClassVar[str] = "dpo"
    method: Literal["dpo", "ipo", "kto", "orpo"] = "dpo"
    """dpo; ipo: Azar et al. 2023, arXiv:2310.12036; kto: Ethayarajh et al. 2024, arXiv:2402.01306 (each answer by itself); orpo: Hong et al. 2024, arXiv:2403.07691."""
    beta: PositiveFloat = 0.1
    """How dear it is to move away from the reference (dpo, kto); 1 / (2 tau) of ipo; weight of the odds ratio (orpo)."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Chance that a pair is the wrong way round (dpo: conservative DPO)."""
    reference_free: bool = False
    """Leave the reference out (dpo, ipo): a uniform one. orpo has none in any case."""
    sft_weight: NonNegativeFloat = 0.0
    """Weight of the chosen answer's own negative log-likelihood, per token (dpo, ipo)."""
    heldout_pairs: PositiveInt = 400
    """Held-out pairs on which margins and accuracy are measured before and after."""
    needs_scorer: ClassVar[bool] = False

    @model_validator(mode="after")
    def _fits_its_loss(self) -> DPOConfig:
        if self.label_smoothing and self.method != "dpo":
            raise ValueError(f"label_smoothing is dpo's, and method is {self.method}: it would be ignored. Remove it")
        if self.sft_weight and self.method not in ("dpo", "ipo"):
            raise ValueError(f"sft_weight is for dpo and ipo, and method is {self.method}: it would be ignored. Remove it")
        if self.reference_free and self.method not in ("dpo", "ipo"):
            raise ValueError(f"reference_free is for dpo and ipo, and method is {self.method}: " + ("orpo has no reference." if self.method == "orpo" else "kto needs one.") + " Remove it")
        return self


class BestOfNConfig(OptimConfig):
    """Answer each prompt several times, keep the best answer by the reward, and fine-tune on the winners (rejection sampling; Touvron et al. 2023, arXiv:2307.09288)."""

    model_config = ConfigDict(title="Best of N")
    stage: ClassVar[str] = "best_of_n"
    method: Literal["best_of_n"] = "best_of_n"
    """Rejection sampling, then SFT on the winners."""
    n: Annotated[int, Field(ge=2)] = 8
    """Answers to each prompt."""
    prompts_sampled: PositiveInt = 512
    """Prompts that are answered."""
    minimum_reward: float | None = None
    """Winners below this are left out; empty = every prompt's best is taken."""
    max_new_tokens: PositiveInt = 64
    """Longest answer."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature."""
    prompts: PromptsConfig = PromptsConfig()
    """What is answered."""
    rewards: tuple[RewardTerm, ...] = (RewardTerm(kind="model"),)
    """What an answer is worth: the weighted sum of these."""
    unfinished_penalty: NonNegativeFloat = 1.0
    """Reward taken from an answer without an end-of-turn token."""
    heldout_prompts: PositiveInt = 128
    """Held-out prompts on which reward and KL are measured before and after."""

    @property
    def needs_scorer(self) -> bool:
        return any(term.kind == "model" for term in self.rewards)


AlignConfig = Annotated[PPOConfig | GRPOConfig | DPOConfig | BestOfNConfig, Field(discriminator="method")]
