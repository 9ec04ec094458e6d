"""The data card: what it shows is what the steps counted, whoever wrote the texts, and nothing on it asks the network."""

import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.data import tally
from components.data.datacard import card, card_checks, card_plots
from components.data.deduplication import clusters, minhash
from components.data.tokenizing import mix
from components.schema.config import BadInput
from components.schema.data import DataConfig, MixConfig

HOSTILE = "<script>alert(1)</script><img src='http://evil.example/x.png' onerror=\"alert(2)\">\0\x1b[31m\ud800 ‮ ]]> </style></title> {{ 7 * 7 }} &amp; '\""
VOID = {"meta", "link", "img", "br", "hr", "input"}
# Sides of the page where each section's figures come from: by file, what goes when it goes.
SECTIONS_OF = {
    "dedup/counts.json": {"duplicates"},
    "decontaminate/counts.json": set(),  # benchmarks still tell how many items there are
    "tokenizer/report.json": {"tokenizer"},
    "chats/counts.json": {"chats"},
    "preferences/counts.json": {"preferences"},
    "filter/counts.json": {"quality"},
    "collect/counts.json": {"sources"},
}
PERPLEXITIES, SIZES = {"0.25": 30, "0.5": 60, "0.55": 10}, {"256": 40, "1024": 60}


class Page(HTMLParser):
    """A strict reader: every tag closed in order, ids unique; keeps tables, links, attributes and the visible text."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.ids: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self._rows: list[list[str]] = []
        self._caption = ""
        self.feed(source)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> has an attribute twice"
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self._rows, self._caption = [], ""
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()
        if tag == "table":
            self.tables.setdefault(self._caption.strip(), self._rows)

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.text.append(data)
        if self.open[-1:] in (["td"], ["th"]):
            self._rows[-1][-1] += data
        elif "caption" in self.open:
            self._caption += data

    def row(self, table: str, name: str) -> list[str]:
        return next(row for row in self.tables[table] if row[0] == name)


def config(**parts) -> DataConfig:
    sources = [{"kind": "files", "path": "web/*.txt", "licence": "ODC-BY-1.0"}, {"kind": "hub", "id": "org/books", "domain": "books"}]
    phases = [{"weights": {"web": 3, "books": 1}, "until": 0.5}, {"weights": {"web": 1, "books": 1}, "until": 1}]
    return DataConfig.model_validate({"name": "own", "sources": sources, "mix": {"phases": phases}, **parts})


def counts(web: int, books: int, dropped: dict | None = None, **more) -> dict:
    """A step's counts: web documents have 100 bytes, books 1000."""
    by = {"web": {"documents": web, "bytes": 100 * web}, "books": {"documents": books, "bytes": 1000 * books}}
    return {
        "documents": web + books,
        "bytes": 100 * web + 1000 * books,
        "by_domain": by,
        "by_source": {"web/*.txt": by["web"], "org/books": by["books"]},
        "by_language": {"en": by["web"], "unknown": by["books"]},
        "by_licence": {"ODC-BY-1.0": by["web"], "unknown": by["books"]},
        "dropped": dropped or {},
        "changed": {},
        "histograms": {"document_bytes": SIZES},
        **more,
    }


def drop(count: int, size: int, *examples: str) -> dict:
    return {"count": count, "bytes": size, "examples": list(examples)}


def write(data: Path, path: str, value: dict) -> None:
    (data / path).parent.mkdir(parents=True, exist_ok=True)
    (data / path).write_text(json.dumps(value), encoding="utf-8")  # ASCII: a lone surrogate goes through as an escape


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What all steps of a small dataset leave."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "data" / "own"
    write(root, "benchmarks/counts.json", {"gsm8k": 1319})
    write(root, "collect/counts.json", counts(1000, 20, {"licence_is_denied": drop(80, 8000, HOSTILE)}))
    write(root, "clean/counts.json", counts(900, 20, {"language_de": drop(100, 10000, "Guten Tag")}, changed={"boilerplate_lines_removed": 77}))
    write(root, "filter/counts.json", counts(500, 20, {"fewer_than_50_words": drop(400, 40000, "too short")}, changed={"email_replaced": 12}, histograms={"perplexity": PERPLEXITIES}))
    write(root, "dedup/counts.json", counts(410, 20, {"near_duplicate": drop(90, 9000)}, banding={"threshold": 0.75, "bands": 16, "rows": 7, "permutations": 112, "verify": True}, clusters={"count": 30, "documents": 120, "largest": 9, "sizes": {"2": 20, "8": 10}}))  # fmt: skip
    write(root, "decontaminate/counts.json", counts(400, 20, {"contains_items_of_gsm8k": drop(10, 1000)}, matrix={"web": {"gsm8k": {"documents": 10, "items": 7}}}, contaminated_documents=3, benchmarks={"gsm8k": {"items": 1319, "cannot_be_told": 5, "contaminated_before": 7, "contaminated": 2}}))  # fmt: skip
    write(root, "documents/counts.json", counts(400, 20) | {"train": 400, "heldout": 20, "by_domain": {"web": {"train_bytes": 39_000}, "books": {"train_bytes": 18_000, "heldout_bytes": 3000}}})
    sides = {"train_tokens": 0, "train_bytes": 0, "train_documents": 0, "heldout_tokens": 400, "heldout_bytes": 2000, "heldout_documents": 20}
    domains = {"web": {**sides, "train_tokens": 8000, "train_bytes": 39000, "document_tokens": {"16": 390}}, "books": {**sides, "train_tokens": 2000, "train_bytes": 9000, "document_tokens": {"128": 10}}}
    write(root, "tokens/tokens.json", {"vocab_size": 999, **sides, "train_tokens": 10000, "train_bytes": 48000, "document_tokens": {"16": 390, "128": 10}, "domains": domains})
    write(root, "mix/mix.json", mix.resolve(MixConfig.model_validate(config().mix.model_dump()), {"web": 8000, "books": 2000}))
    rates = {"bytes_per_token": 4.25, "tokens_per_word": 1.5, "coverage": 0.99, "tokens_per_number": 2.0, "lossless": 1.0}
    write(root, "tokenizer/report.json", {"vocab_size": 999, "heldout": {"web": rates, "all": rates}, "unused": {"share": 0.1, "examples": [HOSTILE]}, "longest_tokens": [" the\n"], "yardstick": {"what": "a yardstick", "ratio": {"web": 1.25}}})  # fmt: skip
    write(root, "tokenizer/counts.json", {"vocab_size": 999})
    write(root, "chats/counts.json", {"chats": 55, "train": 50, "heldout": 5, "by_kind": {"org/chats": 55}, "by_shape": {"question_answer": 55}, "changed": {"roles_renamed": 9}, "matrix": {"org/chats": {"gsm8k": {"rows": 4, "items": 3}}}, "dropped": {"duplicate": {"count": 5, "examples": [HOSTILE]}}})
    write(root, "preferences/counts.json", {"pairs": 33, "train": 30, "heldout": 3, "by_kind": {"org/pairs": 33}, "dropped": {}})
    rows = [
        {"cluster": c, "size": 50 - c, "id": f"{c:08x}{m:08x}", "kept": m == 0, "kind": "near" if m else None, "similarity": 0.9 if m else 1.0, "source": "web/*.txt", "domain": "web", "url": None, "excerpt": f"excerpt {c}-{m} <script>"}
        for c in range(35) for m in range(6)
    ]  # fmt: skip
    (root / "dedup/report").mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema=clusters.SCHEMA), root / "dedup/report/clusters.parquet")
    return root


def made(data: Path, **parts) -> Page:
    card.run(config(**parts), data / "card")
    return Page((data / "card/index.html").read_text(encoding="utf-8"))


def sections(page: Page) -> set[str]:
    return {attributes["id"] for tag, attributes in page.tags if tag == "section"}


def test_the_page_is_well_formed_and_every_link_leads_somewhere(data: Path) -> None:
    page = made(data)
    assert len(page.ids) == len(set(page.ids))
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert len(links) > 15 and {link.removeprefix("#") for link in links} <= set(page.ids)
    source = (data / "card/index.html").read_text()
    assert source.startswith("<!DOCTYPE html>") and len(source) < 1_000_000
    assert page.tables and all(len({len(row) for row in rows}) == 1 for rows in page.tables.values()), "a row has more cells than its table has columns"


def test_libxml_finds_the_same_page(data: Path) -> None:
    lxml = pytest.importorskip("lxml.html", reason="lxml is not installed")
    page = made(data)
    tree = lxml.fromstring((data / "card/index.html").read_text())
    assert {section.get("id") for section in tree.iter("section")} == sections(page)


def test_nothing_on_the_page_asks_the_network(data: Path) -> None:
    page = made(data)
    source = (data / "card/index.html").read_text()
    for tag, attributes in page.tags:
        assert tag not in ("script", "iframe", "object", "embed", "img", "base", "form", "video", "audio"), tag
        assert not any(name.startswith("on") for name in attributes), attributes
        for name in ("src", "href", "srcset", "action", "data", "poster", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:,")), (tag, name, attributes[name])
        assert "url(" not in (attributes.get("style") or "")
    style = re.search(r"<style>(.*?)</style>", source, re.S)[1]
    assert "url(" not in style and "@import" not in style and "--page" in style
    policy = next(attributes["content"] for tag, attributes in page.tags if attributes.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy and "script-src" not in policy


def test_hostile_texts_are_shown_as_text(data: Path) -> None:
    page = made(data)
    source = (data / "card/index.html").read_text(encoding="utf-8")
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]", source)
    shown = card_plots.visible(HOSTILE)
    assert "".join(page.text).count(shown) == 2, "once among what collect dropped, once among the chats"
    assert "␀␛[31m�" in shown and "{{ 7 * 7 }}" in shown
    assert "<script" not in source and "<img" not in source


def test_hostile_names_and_settings_are_shown_as_text(data: Path) -> None:
    told = counts(1000, 20, {"<script>reason": drop(1, 1)})
    for group in ("source", "language", "licence", "domain"):
        told[f"by_{group}"] = {HOSTILE: {"documents": 1, "bytes": 1}, "</table>": {"documents": 2, "bytes": 2}}
    for step in ("collect", "decontaminate"):
        write(data, f"{step}/counts.json", told | {"matrix": {"<b>": {"<i>x": {"documents": 1, "items": 1}}}, "changed": {"<u>": 1}})
    page = made(data, sources=[{"kind": "files", "path": HOSTILE.replace("\ud800", "").replace("\0", "")}], mix={}, filter={})
    assert "<script" not in (data / "card/index.html").read_text() and "</table>" in "".join(page.text)
    assert not any(tag in ("b", "i", "u") and not attributes for tag, attributes in page.tags), "our own have attributes"


def test_the_same_inputs_give_the_same_bytes(data: Path) -> None:
    made(data)
    first = {path.name: path.read_bytes() for path in (data / "card").iterdir()}
    shutil.rmtree(data / "card")
    made(data)
    assert first == {path.name: path.read_bytes() for path in (data / "card").iterdir()} and first.keys() == {"index.html", "counts.json"}


def test_the_headline_is_computed_from_the_first_and_the_last_step(data: Path) -> None:
    page = made(data)
    figures = tally.read(data / "card")
    assert (figures["documents"], figures["bytes"], figures["train_tokens"], figures["vocab_size"]) == (420, 60_000, 10_000, 999)
    assert figures["kept_share_of_documents"] == pytest.approx(420 / 1020, abs=1e-6)
    assert figures["kept_share_of_bytes"] == 0.5  # (400 * 100 + 20 * 1000) / (1000 * 100 + 20 * 1000)
    assert (figures["domains"], figures["languages"], figures["licences"]) == (2, 1, 1), "the unknown is no language and no licence"
    assert figures["unknown_licence_share_of_bytes"] == pytest.approx(1 / 3, abs=1e-6)
    text = "".join(page.text)
    assert "41.2 %of the collected documents kept" in text and "50.0 %of the collected text kept" in text
    assert "33.3 % of the text names no licence." in text


def test_the_funnel_has_every_step_and_what_the_sources_held(data: Path) -> None:
    rows = made(data).tables["What is left after each step"][1:]
    assert [(name, documents) for name, documents, *_ in rows] == [
        ("in the sources", "1,100"), ("collected", "1,020"), ("cleaned", "920"), ("filtered", "520"), ("without duplicates", "430"),
        ("without benchmark items", "420"), ("to train on", "400"), ("held out", "20"),
    ]  # fmt: skip
    assert (rows[-2][3], rows[-1][3]) == ("57.0 kB", "3.00 kB")
    assert rows[-3][2] == f"{100 * 420 / 1100:.1f} %" and rows[-3][3] == "60.0 kB"
    assert made(data).row("Documents of each domain after each step", "web") == ["web", "1,000", "900", "500", "410", "400", "40.0 %"]


def test_drops_are_shares_of_what_the_step_was_given(data: Path) -> None:
    page = made(data)
    assert page.row("What filter dropped", "fewer than 50 words") == ["fewer than 50 words", "400", f"{100 * 400 / 920:.1f} %", "40.0 kB"]
    assert page.row("Changes", "filter") == ["filter", "email replaced", "12"]
    assert "Guten Tag" in "".join(page.text)


def test_the_planned_mixture_stands_against_the_natural_one(data: Path) -> None:
    page = made(data)
    # books: 25 % of the first half of training and 50 % of the second, so 37.5 % of it, of 10,000 tokens, from 2,000
    assert page.row("Planned mixture", "books")[1:] == ["20.0 %", "25.0 %", "50.0 %", f"{0.375 * 10_000 / 2_000:.2f}", f"{4 * 2_000 / 0.375:,.0f}"]
    widths = [float(re.search(r"width:([\d.]+)%", a["style"])[1]) for tag, a in page.tags if tag == "span" and re.match(r"p\d", a.get("class") or "")]
    assert sorted(widths) == [20, 25, 50, 50, 75, 80]


def test_the_curve_of_the_bands_is_that_of_minhash(data: Path) -> None:
    curve = minhash.Banding(16, 7).curve(np.linspace(0, 1, 11))
    assert [card_checks.chance(s / 10, 16, 7) for s in range(11)] == pytest.approx(curve.tolist())
    assert f"found with a chance of {100 * minhash.Banding(16, 7).curve(np.array(0.75)):.1f} %" in "".join(made(data).text)


def test_the_largest_clusters_are_shown_with_the_kept_document_first(data: Path) -> None:
    text = "".join(made(data).text)
    assert "excerpt 29-0 <script>" in text and "excerpt 30-0" not in text, "the 30 largest"
    assert text.index("excerpt 0-0") < text.index("excerpt 0-1") and "excerpt 0-4" not in text and "and 46 more" in text
    assert "kept" in text and "near copy, similarity 0.90" in text


def test_contamination_tokenizer_chats_and_pairs_are_as_counted(data: Path) -> None:
    page = made(data)
    assert page.row("Documents that hold an item", "web") == ["web", "10"] and page.row("Items that a document holds", "web") == ["web", "7"]
    assert page.row("Items of each benchmark", "gsm8k") == ["gsm8k", "1,319", "5", "7", "2"]
    assert tally.read(data / "card")["contaminated_documents"] == 3 and "3 documents hold an item" in "".join(page.text)
    assert page.row("On held-out documents", "web") == ["web", "4.25", "1.50", "2.00", "99.0 %", "100 %", "1.25"]
    assert page.row("Chats by kind", "org/chats")[1] == "55" and page.row("What chats dropped", "duplicate")[1:] == ["5", f"{100 * 5 / 60:.2f} %"]
    assert page.row("Chats by shape", "question answer")[1:] == ["55", "100 %"] and page.row("Chats: changes", "roles renamed")[1] == "9"
    assert page.row("Chats that hold an item of a benchmark", "org/chats")[1] == "4" and page.row("Chats: items that were met", "org/chats")[1] == "3"
    assert page.row("Preferences by kind", "org/pairs")[1] == "33"


@pytest.mark.parametrize("path", SECTIONS_OF)
def test_a_section_goes_with_its_input(data: Path, path: str) -> None:
    before = sections(made(data))
    (data / path).unlink()
    if path.startswith("dedup"):
        shutil.rmtree(data / "dedup/report")
    assert before - sections(made(data)) == SECTIONS_OF[path]


def test_a_curriculum_alone_has_a_short_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    generated = tally.Tally().plain() | {"documents": 50, "bytes": 5000, "by_domain": {"curriculum": {"documents": 50, "bytes": 5000}}, "by_licence": {"CC0-1.0": {"documents": 50, "bytes": 5000}}}
    for step in ("collect", "clean", "filter", "dedup", "decontaminate"):
        write(tmp_path / "data/own", f"{step}/counts.json", generated | {"banding": None, "matrix": {}, "clusters": {"count": 0, "documents": 0, "largest": 0, "sizes": {}}})
    page = made(tmp_path / "data/own", sources=[], curriculum={}, mix={})
    assert sections(page) == {"funnel", "domains", "licences", "duplicates", "settings", "version"}
    assert "Every document names its licence." in "".join(page.text) and "Worth a look" not in "".join(page.text)


def test_what_is_worth_a_look_follows_the_figures(data: Path) -> None:
    def remarks(**parts) -> str:
        return " ".join(what for _, what in card.remarks(card.card_inputs.read(config(**parts), data)))

    assert "33.3 % of the text names no licence" in remarks() and "Personal data" not in remarks()
    assert "Personal data was not looked for" in remarks(filter={"pii": "keep"}) and "Not every kind of duplicate" in remarks(dedup={"near": False})
    write(data, "clean/counts.json", counts(100, 20, {"language_de": drop(900, 90000)}))
    assert f"clean dropped {100 * 900 / 1020:.1f} % of its documents for one reason: language de." in remarks()


def test_settings_and_version_name_the_pins_and_the_command(data: Path) -> None:
    Path("params.yaml").write_text("datasets: {own: {pins: {documents: {web/*.txt: md5 0123abcd}}}}")
    page, text = made(data), "".join(made(data).text)
    assert page.row("Sources", "web/*.txt")[1:3] == ["md5 0123abcd", "ODC-BY-1.0"]
    assert "dvc pull data/own/documents data/own/tokens" in text and "threshold: 0.75" in text
    assert f"-S {hashlib.md5((data / 'tokens/tokens.json').read_bytes()).hexdigest()} -- dvc.lock" in text


def test_a_histogram_draws_each_bin_in_proportion() -> None:
    plot = card_plots.histogram("Lengths", {"2": 10, "16": 40}, "tokens")
    heights = [float(high) for high in re.findall(r'<rect class="bar".*?height="([\d.]+)"', plot.svg)]
    assert len(heights) == 2 and heights[1] == pytest.approx(4 * heights[0])
    starts = [float(x) for x in re.findall(r'<rect class="bar" x="([\d.]+)"', plot.svg)]
    assert (starts[1] - starts[0]) / (card_plots.WIDTH - card_plots.LEFT - card_plots.RIGHT) == pytest.approx(3 / 4, abs=1e-3), "bins of 4 and 8 lie between, empty"
    assert [[cell.text for cell in row] for row in plot.table.rows] == [["2 to 4", "10", "20.0 %"], ["16 and more", "40", "80.0 %"]]


def test_an_empty_text_has_a_bin_of_its_own_before_the_powers_of_two() -> None:
    plot = card_plots.histogram("Lengths", {"0": 5, "4": 5}, "bytes")
    assert [row[0].text for row in plot.table.rows] == ["0 to 4", "4 and more"]


def test_scores_have_evenly_spaced_bins_and_one_scale() -> None:
    plot = card_plots.histogram("Quality", {"0.15": 1, "0.3": 1}, "score", shown=lambda edge: f"{edge:g}", step=0.05, within=(0, 0.95))
    assert [row[0].text for row in plot.table.rows] == ["0.15 to 0.2", "0.3 to 0.35"]
    width = card_plots.WIDTH - card_plots.LEFT - card_plots.RIGHT
    assert [round((float(x) - card_plots.LEFT) / width, 2) for x in re.findall(r'<rect class="bar" x="([\d.]+)"', plot.svg)] == [0.15, 0.3]


@pytest.mark.parametrize(
    ("share", "text"), [(0, "0 %"), (1, "100 %"), (0.00001, "< 0.01 %"), (0.0123, "1.23 %"), (0.0999, "9.99 %"), (0.09999, "10.0 %"), (0.5, "50.0 %"), (0.99999, "> 99.9 %"), (0.9994, "99.9 %")]
)  # fmt: skip
def test_a_percentage_never_hides_what_is_there(share: float, text: str) -> None:
    assert card_plots.percent(share) == text


@pytest.mark.parametrize(("number", "text"), [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.00 kB"), (123_456, "123 kB"), (999_600, "1.00 MB"), (1_234_567, "1.23 MB"), (5e13, "50.0 TB")])
def test_bytes_are_in_decimal_units(number: float, text: str) -> None:
    assert card_plots.size(number) == text


def test_a_card_without_any_step_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"card: .* holds no counts of the collect step, .* modelyard data repro"):
        card.run(config(), tmp_path / "data/own/card")
