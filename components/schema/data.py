"""The data section of a recipe: where text comes from, what is kept of it, and how it is laid out for training.

One class per stage of the data line, in the line's order. A stage depends on its own section only, so a changed
threshold reruns from that stage on and nothing before it.
"""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from components.schema.config import Config, Fraction, Name

MiniSuite = Literal["mini_gsm8k", "mini_mmlu", "mini_humaneval"]
Suite = Annotated[str, Field(pattern=r"^[A-Za-z0-9][^\s/\\]*$", max_length=120)]  # mini_*, or any task, group or tag of lm-eval
Domain = Name
CURRICULUM = "curriculum"  # the domain of generated text: made clean, so only its copies and its contamination are looked at
CODE = "code"  # the domain of source code: nothing in it is prose, so prose rules do not ask it


class Source(Config):
    """Where documents, chats or preference pairs come from."""

    kind: Literal["files", "hub", "installed", "git"]
    """files: local txt, md, html, jsonl, parquet, csv or warc, each also as .gz or .zst. hub: a dataset by its id. installed: this Python's
    standard library and packages. git: the code and documents of a local Git repository."""
    path: str | None = None
    """File or folder, relative to the project (kinds files, git)."""
    id: str | None = None
    """Dataset id on the hub, such as allenai/c4 (kind hub)."""
    config: str | None = None
    """Configuration of the hub dataset, such as en."""
    split: str = "train"
    """Split of the hub dataset."""
    revision: str | None = None
    """Commit, tag or branch of the hub dataset; empty = the newest when it was first read, which params.yaml then keeps."""
    text_field: str = "text"
    """Column that holds the document (jsonl, parquet, csv, hub)."""
    packages: tuple[str, ...] = ()
    """Installed packages whose docstrings and code are read; `stdlib` is Python's own library (kind installed)."""
    domain: Domain = "web"
    """What kind of text this is, for the mixture: web, books, papers, code, reference, or a name of your own."""
    licence: str | None = None
    """Licence of documents that do not name one themselves (an SPDX id such as CC-BY-SA-4.0); a document's own `license`/`licence` column wins."""
    languages: tuple[str, ...] = ()
    """Programming languages to take, such as python or rust (kind git); empty = every language that is known by its file ending."""
    max_characters: PositiveInt | None = None
    """Cut longer documents at blank lines, so that a book in one file can be held out in part; empty = whole documents."""
    max_documents: PositiveInt | None = None
    """Take at most this many documents, in the source's own order."""
    max_bytes: PositiveInt | None = None
    """Stop after about this many bytes of UTF-8 text."""

    @model_validator(mode="after")
    def _has_what_its_kind_needs(self) -> Source:
        need = {"hub": "id", "installed": "packages"}.get(self.kind, "path")
        if not getattr(self, need):
            raise ValueError(f"a source of kind {self.kind!r} needs `{need}`: without it there is nothing to read. Add `{need}: ...` to it")
        if self.domain == CURRICULUM:
            raise ValueError(f"domain {CURRICULUM!r} is kept for generated text, which no filter reads: a source there would go in unseen. Choose another name")
        return self

    @property
    def label(self) -> str:
        """How the source is called in counts and messages."""
        hub_id = f"{self.id}:{self.config}" if self.config else self.id
        return self.path or hub_id or "installed:" + "+".join(self.packages)


class CurriculumConfig(Config):
    """Our own generated data: a closed little world that a small model can learn in minutes, with held-out benchmarks."""

    seed: NonNegativeInt = 0
    """Seed of the generator; the same seed gives the same bytes."""
    documents: NonNegativeInt = 20_000
    """Short texts for pretraining: facts, worked sums, lists, small Python functions."""
    chats: NonNegativeInt = 12_000
    """Single-turn chats for SFT."""
    preferences: NonNegativeInt = 3_000
    """Preference pairs for the reward model."""
    safety: NonNegativeInt = 0
    """Further pairs in which helpful and harmless pull apart: the fuller answer often tells where a person lives, which is preferred and unsafe. Each says
    which side is safer and which are safe, for a cost model."""
    benchmark_items: PositiveInt = 120
    """Items in each of mini_gsm8k and mini_mmlu (mini_humaneval has at most a third of it)."""


class CollectConfig(Config):
    """What may be taken at all."""

    allow_licences: tuple[str, ...] = ()
    """Take only documents under these licences (SPDX ids, * matches any text: CC-BY-*); empty = all that are not denied."""
    deny_licences: tuple[str, ...] = ()
    """Never take documents under these licences."""
    unknown_licence: Literal["take", "drop"] | None = None
    """What to do with a document that names no licence, where its source names none either; empty = drop beside `allow_licences`, else take."""
    opt_out_domains: tuple[str, ...] = ()
    """Web sites (example.org, with all below it) whose owners asked not to be used."""
    robots: str | None = None
    """Folder of robots.txt files named by host (example.org.txt); pages they forbid to `robots_agents` are not taken."""
    robots_agents: tuple[str, ...] = ("modelyard", "CCBot", "GPTBot", "Google-Extended")
    """A page forbidden to any of these is not taken. A page's own noai, noindex or TDM opt-out in its HTML or HTTP headers counts too."""
    max_document_bytes: PositiveInt = 5_000_000
    """Longer documents are dropped and counted: they are dumps more often than texts."""


class CleanConfig(Config):
    """What is mended in a text before anything judges it."""

    repair_encoding: bool = True
    """Undo mojibake such as â€™ for ’ (ftfy)."""
    normalization: Literal["NFC", "NFKC", "none"] = "NFC"
    """Unicode normal form. NFKC also folds what only looks different (ﬁ, ², full-width letters), which loses information in code and maths."""
    boilerplate_lines: bool = True
    """Drop lines that are page furniture: cookie notices, navigation, share buttons, copyright footers (not in domain code)."""
    lowercase: bool = False
    """Lower-case everything. For classic bag-of-words uses only: a language model that never saw a capital cannot write one."""
    remove_stop_words: bool = False
    """Remove the commonest words of the document's language. For classic uses only: a language model trained on this cannot write a sentence."""
    languages: tuple[str, ...] = ()
    """Keep only these languages (ISO 639-1, such as en); empty = keep all, and count them. Domain code is not asked."""
    min_language_probability: Fraction = 0.5
    """Below this probability a document's language counts as unknown, and is dropped where `languages` is given."""


Rules = Literal["gopher_quality", "gopher_repetition", "c4", "fineweb"]
WEB_RULES: tuple[Rules, ...] = ("gopher_quality", "gopher_repetition", "c4", "fineweb")


class QualityWeights(Config):
    """`quality = w1*perplexity + w2*diversity + w3*safety`, each part between 0 and 1 and the weights normalised to sum to 1."""

    perplexity: NonNegativeFloat = 0.5
    """Weight of how predictable the text is to an n-gram model of the reference domain (1 = as the reference, 0 = nothing like it)."""
    diversity: NonNegativeFloat = 0.3
    """Weight of the variety of words."""
    safety: NonNegativeFloat = 0.2
    """Weight of the absence of toxic and hateful language."""

    @model_validator(mode="after")
    def _something_counts(self) -> QualityWeights:
        if self.perplexity + self.diversity + self.safety == 0:
            raise ValueError("all three weights are 0: every document would have the same quality. Give at least one a weight")
        return self


class FilterConfig(Config):
    """Which documents are worth learning from."""

    rules: dict[Domain, tuple[Rules, ...]] = {"web": WEB_RULES}
    """Rules by domain, applied in the order given; a domain that is not named goes through none. gopher_*: Rae et al. 2021, arXiv:2112.11446;
    c4: Raffel et al. 2020, arXiv:1910.10683; fineweb: Penedo et al. 2024, arXiv:2406.17557."""
    pii: Literal["replace", "drop", "keep"] = "replace"
    """What to do with e-mail addresses, phone numbers, IP addresses, card numbers and keys: put a placeholder there, drop the document, or nothing."""
    pii_kinds: tuple[Literal["email", "phone", "ip", "card", "key"], ...] = ("email", "phone", "ip", "card", "key")
    """Which kinds are looked for."""
    max_toxicity: Fraction = 1.0
    """Drop documents whose toxicity score is above this; 1 = only measure."""
    classifier: str | None = None
    """A safety classifier of your own, as `package.module:function`; it gets a list of texts and returns a toxicity in [0, 1] for each."""
    reference_domain: Domain | None = None
    """Domain whose documents teach the n-gram model behind the perplexity part; empty = the first of reference, books, papers that is there, else all."""
    quality_weights: QualityWeights = QualityWeights()
    """How the three parts of the quality score are weighed."""
    min_quality: Fraction = 0.0
    """Drop documents below this quality; 0 = only measure."""


class DedupConfig(Config):
    """Which texts are there twice."""

    documents: bool = True
    """Drop exact copies of a document (white space and case aside)."""
    paragraphs: bool = False
    """Drop paragraphs that stood before, in an earlier document or the same. Good for web text with shared furniture, harmful for verse and templates; domain
    code is spared."""
    min_paragraph_characters: PositiveInt = 80
    """Shorter paragraphs are never dropped as duplicates."""
    near: bool = True
    """Drop near copies: MinHash (Broder 1997) over word n-grams with locality-sensitive hashing (Lee et al. 2022, arXiv:2107.06499). The copy of the
    highest quality stays, of equals the first."""
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.75
    """Jaccard similarity of shingle sets from which two documents count as the same; bands and rows are derived from it."""
    permutations: Annotated[int, Field(ge=16, le=512)] = 112
    """Hash functions of a signature; more = sharper threshold, more memory."""
    shingle_words: PositiveInt = 5
    """Words in a shingle."""
    verify: bool = True
    """Confirm each candidate pair by its whole signature, which removes nearly all false matches of the bands."""


class DecontaminateConfig(Config):
    """Keep what will be asked out of what is learnt."""

    action: Literal["drop", "mark", "report"] = "drop"
    """drop: leave the document out. mark: keep it, flagged. report: only count. Generated curriculum is never dropped: it is made without the items."""
    ngram_words: Annotated[int, Field(ge=3)] = 13
    """Words in the n-grams that are compared (13 as in Brown et al. 2020, arXiv:2005.14165, appendix C). A shorter item is compared whole."""
    min_overlap: Annotated[float, Field(gt=0, le=1)] = 0.5
    """A document contaminates an item when at least this share of the item's n-grams stands in it."""


class Mixture(Config):
    """Domain proportions of the training tokens."""

    weights: dict[Domain, NonNegativeFloat] = {}
    """Weight by domain (any scale); empty = as much of each as there is. With every usual domain: web 65, books 17, papers 8, code 7, reference 3."""
    until: Annotated[float, Field(gt=0, le=1)] = 1.0
    """These weights hold up to this share of the training steps; the next phase goes on from there."""


class MixConfig(Config):
    """What share of training each domain has, phase by phase."""

    phases: tuple[Mixture, ...] = (Mixture(),)
    """One mixture for the whole run, or several in order (annealing): the last must reach until: 1."""
    max_epochs: PositiveFloat = 4.0
    """No domain is repeated more often than this (Muennighoff et al. 2023, arXiv:2305.16264: four passes are nearly as good as fresh data); what
    a capped domain cannot give, the others give in proportion."""

    @model_validator(mode="after")
    def _phases_reach_the_end(self) -> MixConfig:
        ends = [phase.until for phase in self.phases]
        if not ends or ends != sorted(set(ends)) or ends[-1] != 1:
            raise ValueError(f"phases end at {ends}: they must rise and end at 1, or part of the training would have no mixture. Correct `until`")
        for phase in self.phases:
            if phase.weights and not any(phase.weights.values()):
                raise ValueError("every weight of a phase is 0: nothing could be drawn. Give at least one domain a weight")
        return self


class TokenizerConfig(Config):
    """The tokenizer: trained on these documents, or taken as it is."""

    kind: Literal["bpe", "unigram", "character", "pretrained"] = "bpe"
    """bpe: byte-level BPE (Sennrich et al. 2016, arXiv:1508.07909). unigram: byte-level Unigram (Kudo 2018, arXiv:1804.10959). character: one token
    a character, bytes for the rare ones. pretrained: an existing tokenizer by `id`."""
    vocab_size: Annotated[int, Field(ge=300, le=1_000_000)] = 2048
    """Tokens in the vocabulary, special tokens included (trained kinds)."""
    id: str | None = None
    """Hub id or local folder of the tokenizer (kind pretrained); our chat tokens are added where it has none."""
    revision: str | None = None
    """Commit, tag or branch of that hub id; empty = the newest when it was first read, which params.yaml then keeps."""
    max_training_bytes: PositiveInt = 200_000_000
    """Train on at most this much text, taken evenly from every domain in proportion."""

    @model_validator(mode="after")
    def _pretrained_has_an_id(self) -> TokenizerConfig:
        if self.kind == "pretrained" and not self.id:
            raise ValueError("kind 'pretrained' needs `id`: without it there is no tokenizer to take. Add a hub id or a folder")
        return self


class DataConfig(Config):
    """What the model learns from. Each `name` is a dataset of its own in DVC."""

    name: Name
    """Folder under data/ and suffix of the DVC stages; recipes that share a name share the data."""
    sources: tuple[Source, ...] = ()
    """Documents for pretraining."""
    chats: tuple[Source, ...] = ()
    """Chats for SFT, recognised by shape: OpenAI messages, ShareGPT conversations, alpaca, question and answer, hh-rlhf transcripts."""
    preferences: tuple[Source, ...] = ()
    """Preferences, recognised by shape: prompt/chosen/rejected in text or turns, hh-rlhf transcripts, or K ranked answers to a prompt."""
    curriculum: CurriculumConfig | None = None
    """Add the generated curriculum to documents, chats, preferences and benchmarks."""
    benchmarks: tuple[Suite, ...] = ()
    """Benchmarks whose data is snapshotted beside the training data: mini_* from the curriculum, any task of lm-eval by its name from the hub or its mirror."""
    collect: CollectConfig = CollectConfig()
    """Licences, opt-outs and sizes."""
    clean: CleanConfig = CleanConfig()
    """Encoding, normalisation, boilerplate, language."""
    filter: FilterConfig = FilterConfig()
    """Quality rules, personal data, toxicity, quality score."""
    dedup: DedupConfig = DedupConfig()
    """Exact and near duplicates."""
    decontaminate: DecontaminateConfig = DecontaminateConfig()
    """Overlap with the benchmarks."""
    mix: MixConfig = MixConfig()
    """Domain proportions in training."""
    heldout_fraction: Annotated[float, Field(gt=0, lt=0.5)] = 0.02
    """Share of documents, chats and pairs kept aside to measure with; chosen by hash, so it does not move when data is added."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    """The tokenizer of these documents."""

    @model_validator(mode="after")
    def _parts_fit_together(self) -> DataConfig:
        if not self.sources and not self.curriculum:
            raise ValueError("no sources and no curriculum: there would be nothing to train on. Add one under `sources:` or a `curriculum:`")
        mini = [b for b in self.benchmarks if b in get_args(MiniSuite)]
        if mini and not self.curriculum:
            raise ValueError(f"benchmarks {mini} are made by the curriculum, and this recipe has none. Add `curriculum: {{}}` or drop them")
        if unknown := [f"filter.rules.{d}" for d in self.filter.rules if d != "web" and d not in self.domains]:
            raise ValueError(f"{unknown} name domains that no source has: the rules would never be applied. Domains here: {sorted(self.domains)}")
        if unknown := sorted({d for phase in self.mix.phases for d, w in phase.weights.items() if w and d not in self.domains}):
            raise ValueError(f"mix gives weight to {unknown}, which no source has: that share could not be drawn. Domains here: {sorted(self.domains)}")
        return self

    @property
    def domains(self) -> set[str]:
        """Every domain this data has."""
        return {source.domain for source in self.sources} | ({CURRICULUM} if self.curriculum and self.curriculum.documents else set())
