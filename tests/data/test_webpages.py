"""HTML and WARC: the main text, what a page says of itself, and pages made to break readers."""

import gzip
import time
import zlib
from pathlib import Path

import pyarrow
import pytest
from fastwarc import GzipWriter, WarcRecord, WarcRecordType

from components.data.reading import webpages
from components.data.reading.formats import Collected, Refused
from components.schema.data import CollectConfig

BODY = "<article><h1>On tea</h1><p>Tea is made of leaves and of hot water, and of nothing else.</p><p>It is drunk in many countries of the world.</p></article>"


def page(html: str | bytes, charset: str | None = None, headers=(), **config) -> Collected | Refused:
    data = html if isinstance(html, bytes) else html.encode()
    return webpages.page(data, charset, list(headers), CollectConfig(**config), "http://a.org/", None, "here")


def test_the_main_text_is_kept_in_paragraphs_and_the_furniture_is_not():
    menu = "<nav><ul><li><a href=/>Home</a><li><a href=/shop>Shop</a></ul></nav>"
    found = page(f"<html><head><title>t</title><style>p{{}}</style></head><body>{menu}{BODY}<footer>All rights reserved</footer><script>var x=1</script></body></html>")
    assert found.text.split("\n\n") == ["On tea", "Tea is made of leaves and of hot water, and of nothing else.", "It is drunk in many countries of the world."]


def test_what_a_page_says_of_itself_is_taken(tmp_path):
    head = '<link rel="canonical" href="http://a.org/tea"><meta property="article:published_time" content="2020-02-03T04:05:06Z">'
    (tmp_path / "a.html").write_text(f'<head>{head}</head>{BODY}<a rel="license" href="https://creativecommons.org/licenses/by/4.0/">CC</a>')
    found = webpages.file(tmp_path / "a.html", CollectConfig())
    assert (found.url, found.date, found.licence) == ("http://a.org/tea", "2020-02-03T04:05:06Z", "https://creativecommons.org/licenses/by/4.0/")


@pytest.mark.parametrize(("encoding", "text"), [("cp1252", "Ein “schöner” Tag für Müßiggänger"), ("shift_jis", "日本語の文章を読むことができます。" * 5), ("koi8-r", "Съешь же ещё этих мягких французских булок " * 5), ("iso2022_jp", "日本語の文章です。" * 9), ("utf-16", "Plain words")])
def test_the_encoding_is_found_in_the_page_in_the_header_or_in_the_bytes(encoding, text):
    html = f"<p>{text}</p>"
    assert page(f'<meta charset="{encoding}">{html}'.encode(encoding)).text.strip() == text.strip()
    assert page(html.encode(encoding), charset=encoding).text.strip() == text.strip()
    assert page(html.encode(), charset="iso-8859-1").text.strip() == text.strip(), "UTF-8 under a wrong label"


def test_a_page_that_opts_out_is_refused_by_header_and_by_meta():
    assert page(f'<meta name="robots" content="noai, nofollow">{BODY}').reason == "noai_in_page"
    assert page(BODY, headers=[("X-Robots-Tag", "noai")]).reason == "noai_in_page"
    assert page(f'<meta name="tdm-reservation" content="1">{BODY}').reason == "noai_in_page"
    assert isinstance(page(f'<meta name="robots" content="all">{BODY}'), Collected)


LAUGHS = "<!DOCTYPE x [<!ENTITY a 'lol'>" + "".join(f"<!ENTITY {chr(98 + i)} '{f'&{chr(97 + i)};' * 10}'>" for i in range(9)) + "]><p>&j;</p>"


@pytest.mark.parametrize(
    ("html", "reason"),
    [
        ("<div>" * 200_000 + "deep", "html_nested_deeper_than_1000"),
        ("<p " + " ".join(f"a{i}" for i in range(200_000)) + ">wide", "html_element_with_over_5000_attributes"),
        ("<script>only()</script>", "html_without_main_text"),
    ],
)
def test_a_page_made_to_break_readers_is_refused_at_once(html, reason):
    began = time.process_time()
    assert page(html).reason == reason
    assert time.process_time() - began < 5


def test_entities_of_a_pages_own_are_not_expanded():
    assert len(page(LAUGHS).text) < 2 * len(LAUGHS)


def test_many_metas_and_binary_rubbish_are_no_trouble():
    began = time.process_time()
    assert isinstance(page("<meta name=a content=b>" * 30_000 + BODY), Collected)
    assert isinstance(page(bytes(range(256)) * 2000), Collected | Refused)
    assert time.process_time() - began < 10


def test_an_html_file_that_is_too_long_or_truncated_is_one_refusal(tmp_path):
    (tmp_path / "a.html").write_text("<p>" + "x" * 5000)
    (tmp_path / "b.html.gz").write_bytes(gzip.compress(BODY.encode())[:-9])
    assert webpages.file(tmp_path / "a.html", CollectConfig(max_document_bytes=1000)).reason == "longer_than_1000_bytes"
    assert webpages.file(tmp_path / "b.html.gz", CollectConfig()).reason == "truncated_gz"


# ---------------------------------------------------------------- WARC


def record(url: str, body: bytes, status: str = "200 OK", kind: str = "text/html; charset=utf-8", more: str = "", type: str = "response") -> bytes:
    """One record as ISO 28500 has it."""
    http = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n{more}\r\n".encode() if type == "response" else b""
    content = "application/http; msgtype=response" if http else kind
    head = f"WARC/1.0\r\nWARC-Type: {type}\r\nWARC-Target-URI: {url}\r\nWARC-Date: 2024-01-02T03:04:05Z\r\nWARC-Record-ID: <urn:uuid:0>\r\nContent-Type: {content}\r\nContent-Length: {len(http) + len(body)}\r\n\r\n"
    return head.encode() + http + body + b"\r\n\r\n"


def write(path: Path, *records: bytes) -> Path:
    packed = gzip.compress if path.suffix == ".gz" else bytes
    path.write_bytes(b"".join(map(packed, records)))
    return path


def read(path: Path, **config) -> list[str]:
    return [found.reason if isinstance(found, Refused) else f"{found.url} {found.text}" for found in webpages.archive(path, CollectConfig(**config))]


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz"])
def test_responses_with_text_are_taken_with_their_address_and_date(tmp_path, name):
    records = [
        record("http://a.org/", b"", kind="application/warc-fields", type="warcinfo"),
        record("http://a.org/0", "<p>déjà</p>".encode("latin1"), kind="text/html; charset=latin1"),
        record("http://a.org/0", b"GET / HTTP/1.1\r\n\r\n", kind="application/http; msgtype=request", type="request"),
        record("http://a.org/1", b"gone", status="404 Not Found"),
        record("http://a.org/2", b"\x89PNG", kind="image/png"),
        record("http://a.org/3", b"<p>no</p>", more="X-Robots-Tag: noai\r\n"),
        record("http://a.org/4", b"plain", kind="text/plain"),
        record("http://a.org/5", b"plain, reserved", kind="text/plain", more="tdm-reservation: 1\r\n"),
        record("http://a.org/6", b"<p>" + b"x" * 3000),
    ]
    path = write(tmp_path / name, *records)
    wanted = ["http://a.org/0 déjà", "http_status_404", "content_type_not_text", "noai_in_page", "http://a.org/4 plain", "noai_in_page", "longer_than_2000_bytes"]
    assert read(path, max_document_bytes=2000) == wanted
    assert next(iter(webpages.archive(path, CollectConfig()))).date == "2024-01-02T03:04:05Z"


def test_what_fastwarc_itself_writes_is_read(tmp_path):
    made = WarcRecord()
    made.init_headers(WarcRecordType.response)
    made.headers["WARC-Target-URI"] = "http://a.org/"
    made.headers["Content-Type"] = "application/http; msgtype=response"
    made.set_bytes_content(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<p>hello</p>")
    with (tmp_path / "a.warc.gz").open("wb") as file:
        packed = GzipWriter(file)
        made.write(packed)
        packed.close()
    assert read(tmp_path / "a.warc.gz") == ["http://a.org/ hello"]


def test_encodings_of_http_are_undone_and_their_bombs_are_not_unpacked(tmp_path):
    chunked = b"5\r\n<p>he\r\n6;x=y\r\nllo</p\r\n1\r\n>\r\n0\r\n\r\n"
    deflated, hello = zlib.compress(b"<p>hello"), b"<p>hello"
    records = [
        record("u0", gzip.compress(hello), more="Content-Encoding: gzip\r\n"),
        record("u1", deflated, more="Content-Encoding: deflate\r\n"),
        record("u2", pyarrow.compress(hello, "brotli", asbytes=True), more="Content-Encoding: br\r\n"),
        record("u3", chunked, more="Transfer-Encoding: chunked\r\n"),
        record("u4", hello, more="Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n"),
        record("u5", gzip.compress(bytes(20_000_000)), more="Content-Encoding: gzip\r\n"),
        record("u6", gzip.compress(hello)[:-9], more="Content-Encoding: gzip\r\n"),
        record("u7", hello),
    ]
    found = read(write(tmp_path / "a.warc", *records), max_document_bytes=100_000)
    assert found == [*(f"u{i} hello" for i in range(5)), "longer_than_100000_bytes", "http_encoding_damaged", "u7 hello"]


def test_a_truncated_archive_keeps_all_whole_pages_and_costs_one_drop(tmp_path):
    records = [record(f"http://a.org/{i}", b"<p>page %d</p>" % i) for i in range(5)]
    wanted = [f"http://a.org/{i} page {i}" for i in range(4)]
    packed = write(tmp_path / "a.warc.gz", *records).read_bytes()
    (tmp_path / "a.warc.gz").write_bytes(packed[:-60])
    assert read(tmp_path / "a.warc.gz") == [*wanted, "truncated_gz"]
    (tmp_path / "b.warc").write_bytes(b"".join(records)[:-10])
    assert read(tmp_path / "b.warc") == [*wanted, "warc_record_truncated"]
    (tmp_path / "c.warc").write_bytes(b"".join(records[:4]) + b"rubbish\r\n" * 99)
    assert read(tmp_path / "c.warc") == [*wanted, "damaged_warc"]


def test_a_wet_file_gives_its_texts(tmp_path):
    path = write(tmp_path / "a.warc.wet.gz", record("http://a.org/", "déjà vu".encode(), kind="text/plain", type="conversion"))
    assert read(path) == ["http://a.org/ déjà vu"]
