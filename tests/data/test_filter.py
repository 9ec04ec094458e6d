"""The filter step: order and reasons of drops, columns and histograms, who is not asked, poisoned documents, any number of workers."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from components.data import shards, tally
from components.data.filtering import filter as filter_step
from components.data.filtering import pii, quality, safety
from components.data.words import word_hashes
from components.schema.config import BadInput
from components.schema.data import DataConfig, FilterConfig
from tests.data.test_quality import text as reference_text

PROSE = " ".join(
    f"The committee of district {i} met on a rainy morning and decided, after a long talk about the costs of repair, to open bridge number {i} again." for i in range(40, 60)
)
RUDE = ("kill yourself " * 3 + "now please ") * 5
NO_RULES = {"rules": {}}


def table(texts: list[str], domain: str = "web") -> object:
    return shards.table_of([{"id": str(i), "text": text, "source": "here", "domain": domain} for i, text in enumerate(texts)])


def filtered(texts: list[str], domain: str = "web", reference: quality.Reference | None = None, **options: object) -> tuple[list[dict], tally.Tally, Counter]:
    counts, bias = tally.Tally(), Counter()
    kept = filter_step.filter_table(table(texts, domain), FilterConfig(**{**NO_RULES, **options}), reference, counts, bias)
    return kept.to_pylist(), counts, bias


def dropped(counts: tally.Tally) -> dict[str, int]:
    return {reason: entry["count"] for reason, entry in counts.dropped.items()}


def test_the_rules_of_the_domain_are_asked_and_no_others() -> None:
    rules = {"web": ("gopher_quality",)}
    assert dropped(filtered([PROSE, "Too short."], rules=rules)[1]) == {"fewer_than_50_words": 1}
    assert dropped(filtered(["Too short."], domain="books", rules=rules)[1]) == {}


def test_later_filters_see_what_c4_left_and_its_lines_are_counted() -> None:
    sentences = "\n".join(f"This is sentence number {i} of a page." for i in range(8))
    [row], counts, _ = filtered([sentences + "\nmail jane@doe.org"], rules={"web": ("c4",)})
    assert row["text"] == sentences
    assert counts.changed == {"removed_line_without_terminal_punctuation": 1}


def test_personal_data_is_replaced_dropped_or_kept() -> None:
    texts = ["Write to jane@doe.org or call (212) 555-0187.", "Nothing here."]
    rows, counts, _ = filtered(texts)
    assert [row["text"] for row in rows] == ["Write to <EMAIL> or call <PHONE>.", "Nothing here."]
    assert counts.changed == {"replaced_email": 1, "replaced_phone": 1}
    rows, counts, _ = filtered(texts, pii="drop")
    assert [row["text"] for row in rows] == ["Nothing here."]
    assert dropped(counts) == {"contains_email": 1}
    assert [row["text"] for row in filtered(texts, pii="keep")[0]] == texts
    assert [row["text"] for row in filtered(texts, pii_kinds=("phone",))[0]] == ["Write to jane@doe.org or call <PHONE>.", "Nothing here."]


def test_examples_of_what_was_dropped_give_nobody_away() -> None:
    _, counts, _ = filtered(["Call (212) 555-0187."], rules={"web": ("gopher_quality",)})
    assert counts.dropped["fewer_than_50_words"]["examples"] == ["here: Call <PHONE>."]
    _, counts, _ = filtered(["Call (212) 555-0187."], pii="drop")
    assert counts.dropped["contains_phone"]["examples"] == ["here: Call <PHONE>."]


def test_scores_are_kept_with_the_document_and_drop_it_below_the_threshold() -> None:
    [good, bad], counts, _ = filtered([PROSE, RUDE])
    assert good["safety"] == 1 and good["perplexity"] is None
    assert bad["safety"] == pytest.approx(1 - safety.toxicity(word_hashes([RUDE]))[0])
    assert bad["quality"] == pytest.approx((0.3 * bad["diversity"] + 0.2 * bad["safety"]) / 0.5)
    assert good["quality"] > 0.5 > 0.3 > bad["quality"]
    assert dropped(filtered([PROSE, RUDE], max_toxicity=0.5)[1]) == {"toxicity_above_0.5": 1}
    assert dropped(filtered([PROSE, RUDE], min_quality=0.5)[1]) == {"quality_below_0.5": 1}
    assert counts.histograms["toxicity"] == {"0": 1, "0.95": 1}
    assert set(counts.histograms) >= {"quality", "diversity", "safety", "toxicity"}


def test_histograms_and_bias_pairs_count_dropped_documents_too() -> None:
    _, counts, bias = filtered([PROSE, RUDE, "Women are lazy, and men are stupid."], max_toxicity=0.5)
    assert sum(counts.histograms["quality"].values()) == 3
    assert bias == {"bias_pairs": 2, "documents": 1}


def test_curriculum_passes_untouched_and_unmeasured() -> None:
    [row], counts, _ = filtered(["Mail jane@doe.org, " + RUDE], domain="curriculum", rules={"web": ("gopher_quality",)}, max_toxicity=0.1, min_quality=0.9)
    assert row["text"].startswith("Mail jane@doe.org")
    assert [row[name] for name in filter_step.COLUMNS] == [None] * 4
    assert not counts.histograms.get("quality")


def test_code_has_no_perplexity_part_and_the_others_count_alone(tmp_path: Path) -> None:
    reference = made_reference(tmp_path)
    [code], _, _ = filtered(["def f(x):\n    return x + 1\n"], domain="code", reference=reference)
    assert code["perplexity"] is None
    assert code["quality"] == pytest.approx((0.3 * code["diversity"] + 0.2 * code["safety"]) / 0.5)
    [like], _, _ = filtered([reference_text(5000)], reference=reference)
    [unlike], counts, _ = filtered([PROSE], reference=reference)
    assert like["perplexity"] > 0.5 > 0.05 > unlike["perplexity"]
    assert like["quality"] == pytest.approx(0.5 * like["perplexity"] + 0.3 * like["diversity"] + 0.2 * like["safety"])
    assert all(float(edge) == int(edge) for edge in counts.histograms["perplexity_bits"])


def made_reference(root: Path) -> quality.Reference:
    with shards.Writer(root / "in") as writer:
        writer.write(table([reference_text(seed) for seed in range(100)], "reference"))
    return quality.load(str(quality.prepare(("reference",), 1, shards.paths(root / "in"), root / "work")))


def test_the_classifier_counts_where_it_is_stricter_than_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_strict_classifier.py").write_text("def judge(texts):\n    return [0.9 if 'bridge' in text else 0 for text in texts]\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    safety.classifier.cache_clear()
    rows, _, _ = filtered([PROSE, RUDE, "A quiet day."], classifier="my_strict_classifier:judge")
    assert [row["safety"] for row in rows] == pytest.approx([0.1, 1 - safety.toxicity(word_hashes([RUDE]))[0], 1])


def test_a_document_on_which_a_filter_fails_costs_that_document(monkeypatch: pytest.MonkeyPatch) -> None:
    real = pii.replaced

    def fails(text: str, kinds: object) -> object:
        if "poison" in text:
            raise RecursionError
        return real(text, kinds)

    monkeypatch.setattr(filter_step.pii, "replaced", fails)
    rows, counts, _ = filtered([PROSE, "poison", "Mail jane@doe.org."], pii_kinds=("email",))
    assert [row["text"] for row in rows] == [PROSE, "Mail <EMAIL>."]
    assert counts.changed == {"replaced_email": 1}
    assert sum(counts.histograms["quality"].values()) == 2
    assert dropped(counts) == {"filtering_failed_with_RecursionError": 1}


@pytest.mark.parametrize("poison", ["word " * 2_000_000, "x" * 10_000_000, "1 2 3 - " * 500_000, "a\u0301\u0323" * 1_000_000, "a@b.c " * 500_000, ""], ids=["line", "word", "numbers", "marks", "addresses", "empty"])
def test_a_poisoned_text_is_judged_in_bounded_time(poison: str) -> None:
    began = time.process_time()
    filtered([poison], rules=FilterConfig().rules)
    filtered([poison])
    assert time.process_time() - began < 15


# ---------------------------------------------------------------- the step


def config(**options: object) -> DataConfig:
    sources = [{"kind": "files", "path": domain, "domain": domain} for domain in ("web", "reference")]
    return DataConfig.model_validate({"name": "small", "sources": sources, "curriculum": {}, "filter": options})


def cleaned(root: Path, domains: tuple[str, ...] = ("web", "reference", "curriculum")) -> Path:
    """The clean folder of a small dataset: a shard a domain."""
    texts = {
        "web": [PROSE, "Too short.", PROSE + " Mail jane@doe.org.", reference_text(7)],
        "reference": [reference_text(seed) for seed in range(60)],
        "curriculum": ["One and one is two."] * 2,
    }
    counts = tally.Tally()
    for domain in domains:
        with shards.Writer(root / "clean", domain) as writer:
            writer.write(table(texts[domain], domain))
        counts.keep(table(texts[domain], domain))
    tally.write(root / "clean", counts.plain())
    (root / "filter").mkdir()
    return root / "filter"


def test_the_step_gives_the_same_bytes_for_any_number_of_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELYARD_HOME", str(tmp_path / "home"))
    found = []
    for engine in ("local:1", "local:2"):
        monkeypatch.setenv("MODELYARD_ENGINE", engine)
        folder = cleaned(tmp_path / engine.replace(":", "-"))
        filter_step.run(config(rules={"web": ["gopher_quality"]}), folder)
        found.append({path.name: path.read_bytes() for path in sorted(folder.iterdir())})
    assert found[0] == found[1]
    assert list(found[0]) == ["00000.parquet", "00001.parquet", "00002.parquet", "counts.json"]
    counts = tally.read(folder)
    assert counts["documents"] == 2 + 60 + 2
    assert {reason: entry["count"] for reason, entry in counts["dropped"].items()} == {"fewer_than_50_words": 1, "fewer_than_2_stop_words": 1}
    assert counts["changed"] == {"replaced_email": 1}
    assert counts["reference"]["domains"] == ["reference"] and counts["reference"]["documents"] == 60
    assert counts["bias"] == {"bias_pairs": 0, "documents": 0}
    rows = [row for path in shards.paths(folder) for part in shards.read(path) for row in part.to_pylist()]
    assert [row["perplexity"] is None for row in rows] == [row["domain"] == "curriculum" for row in rows]
    assert np.mean([row["perplexity"] for row in rows if row["domain"] == "reference"]) > 0.8
    assert not list((tmp_path / "home").glob("work/*"))


def test_curriculum_alone_passes_with_nulls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELYARD_HOME", str(tmp_path / "home"))
    folder = cleaned(tmp_path / "alone", ("curriculum",))
    filter_step.run(config(), folder)
    [part] = shards.read(folder / "00000.parquet")
    assert part["text"].to_pylist() == ["One and one is two."] * 2
    assert part["quality"].null_count == 2
    assert tally.read(folder)["reference"] is None


def test_what_cannot_work_is_refused_before_work_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELYARD_HOME", str(tmp_path / "home"))
    folder = cleaned(tmp_path / "bad", ("web", "curriculum"))
    with pytest.raises(BadInput, match=r"filter\.classifier: 'no_such_module:f' cannot be imported"):
        filter_step.run(config(classifier="no_such_module:f"), folder)
    with pytest.raises(BadInput, match=r"filter\.reference_domain: 'reference' has no documents"):
        filter_step.run(config(reference_domain="reference"), folder)
    assert not (tmp_path / "home").exists()
