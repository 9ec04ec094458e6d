"""Web pages: the main text of HTML, from single files and from WARC and WET archives.

    for found in archive(Path("CC-MAIN-0.warc.gz"), config.collect): ...       # Collected or Refused

The main text is resiliparse's (Bevendorff et al. 2018, doi:10.1007/978-3-319-76941-7_83), the archive's reader its sister
FastWARC. On the 990 pages and 143 MB of trafilatura's own evaluation set, on one core here: resiliparse 2.0 85 MB/s,
precision 0.76, recall 0.96; trafilatura 2.3 in its fast mode 12 MB/s, 0.91, 0.93 (with fallbacks 8.5 MB/s, 0.91, 0.95).
What resiliparse leaves in beyond the text is mostly lines of navigation, and the clean and filter steps look for these;
seven times the speed is not to be had elsewhere, and its parser is the browser's algorithm in C, so no page makes it fail.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
from fastwarc.warc import ArchiveIterator, WarcRecord, WarcRecordType
from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.encoding import bytes_to_str, detect_encoding, map_encoding_to_html5
from resiliparse.parse.html import HTMLTree

from components.data.reading.dates import iso_date
from components.data.reading.formats import Bytes, Collected, Damaged, Refused, contents, ending, too_long
from components.data.reading.permissions import page_opts_out
from components.schema.data import CollectConfig

DEEPEST = 1000  # elements within elements; the extraction's time grows with the square of it
MOST_ATTRIBUTES = 5000  # of one element; the parser's time grows with the square of it
_HTML = ("text/html", "application/xhtml+xml")
_TAKEN = (*_HTML, "text/plain")
Headers = list[tuple[str, str]]


def file(path: Path, config: CollectConfig) -> Collected | Refused:
    """The main text of an HTML file, with the address, licence and date that it names itself."""
    try:
        with Bytes(path) as data:
            html = contents(data, config.max_document_bytes)
    except Damaged as damage:
        return Refused(str(damage), str(path), str(path))
    if html is None:
        return Refused(too_long(config.max_document_bytes), str(path), str(path), path.stat().st_size)
    return page(html, None, [], config, None, None, str(path))


def archive(path: Path, config: CollectConfig) -> Iterator[Collected | Refused]:
    """The pages of a WARC file (responses with status 200), or the texts of a WET file (conversions).

    Requests, metadata and revisits are no documents and are not counted. After damage the rest of the file is lost.
    """
    kinds = WarcRecordType.conversion if ending(path) == "wet" else WarcRecordType.response | WarcRecordType.conversion
    with Bytes(path) as data:
        try:
            for record in ArchiveIterator(data, record_types=kinds, stream_detect=False):
                yield _record(record, config, str(path))
        except Damaged as damage:
            yield Refused(str(damage), f"{path}, after byte {data.at}", str(path))
        except OSError as error:
            yield Refused("damaged_warc", f"{path}, about byte {data.at}: {error}", str(path))


def page(html: bytes, charset: str | None, headers: Headers, config: CollectConfig, url: str | None, date: str | None, where: str) -> Collected | Refused:
    """One page. Its own word on its address and date is taken where the caller has none."""
    if fault := _fault(html):
        return Refused(fault, where, where, len(html))
    tree = HTMLTree.parse(decoded(html, charset))
    if html.count(b"<") > 10 * DEEPEST and _deeper_than(tree, DEEPEST):
        return Refused(f"html_nested_deeper_than_{DEEPEST}", where, where, len(html))
    metas = _metas(tree)
    if page_opts_out(headers, metas, config.robots_agents):
        return Refused("noai_in_page", f"{url or where}", where, len(html))
    text = extract_plain_text(tree, main_content=True, alt_texts=False)
    if not text.strip():
        return Refused("html_without_main_text", f"{url or where}", where, len(html))
    said = dict(metas)
    date = iso_date(date or said.get("article:published_time") or said.get("date"))
    return Collected(text, url or _link(tree, "canonical"), _link(tree, "license"), date, None, where)


def decoded(data: bytes, charset: str | None) -> str:
    """The text of a page: UTF-8 where it is that, else as HTTP says, else as the page says, else as the bytes look.

    A page that says Latin-1 and is UTF-8 is common, and nothing else passes for UTF-8 by chance but what switches by escapes.
    """
    if b"\x1b" not in data:
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError:
            pass
    encoding = map_encoding_to_html5(charset) if charset else detect_encoding(data, html5_compatible=True, from_html_meta=True)
    return bytes_to_str(data, encoding or "utf-8", errors="replace")


def _record(record: WarcRecord, config: CollectConfig, path: str) -> Collected | Refused:
    url = record.headers.get("WARC-Target-URI", "").strip("<>") or None
    where = f"{path}, {url}"
    http = record.http_headers
    kind = (record.http_content_type if http else record.headers.get("Content-Type", "")) or ""
    if http and http.status_code != 200:
        return Refused(f"http_status_{http.status_code}", where, where, record.content_length)
    if record.record_type == WarcRecordType.response and not http:
        return Refused("http_headers_missing", where, where, record.content_length)
    if kind.partition(";")[0].strip().lower() not in _TAKEN:
        return Refused("content_type_not_text", f"{kind}: {where}", where, record.content_length)
    body = _body(record, config.max_document_bytes)
    if isinstance(body, str):
        return Refused(body, where, where, record.content_length)
    date = iso_date(record.headers.get("WARC-Date"))
    headers = list(http.items()) if http else []
    if kind.lower().startswith(_HTML):
        return page(body, record.http_charset, headers, config, url, date, where)
    if page_opts_out(headers, [], config.robots_agents):
        return Refused("noai_in_page", f"{url}", where, len(body))
    return Collected(decoded(body, record.http_charset if http else "utf-8"), url, None, date, None, where)


def _body(record: WarcRecord, longest: int) -> bytes | str:
    """A record's content with transfer and content encodings undone, or the reason why it cannot be had."""
    length = record.content_length
    body = record.reader.read(longest + 1)
    if len(body) > longest:
        return too_long(longest)
    if len(body) < length:
        return "warc_record_truncated"
    http = {name.lower(): value.strip().lower() for name, value in record.http_headers.items()} if record.http_headers else {}
    try:
        if http.get("transfer-encoding") == "chunked":
            body = _unchunked(body)
        body = _unpacked(body, http.get("content-encoding", ""), longest)
    except (OSError, pa.ArrowException, zlib.error, ValueError):
        return "http_encoding_damaged"
    return body if len(body) <= longest else too_long(longest)


def _unchunked(body: bytes) -> bytes:
    """HTTP/1.1 chunks joined; as it is where the archive's writer joined them already and left the header."""
    found, at = [], 0
    if not re.match(rb"[0-9a-fA-F]+\s*(;[^\r\n]*)?\r\n", body):
        return body
    while (end := body.index(b"\r\n", at)) and (size := int(body[at:end].partition(b";")[0], 16)):
        found.append(body[end + 2 : end + 2 + size])
        at = end + 2 + size + 2
    return b"".join(found)


def _unpacked(body: bytes, encoding: str, longest: int) -> bytes:
    """At most one byte more than `longest`, so that a small bomb stays small."""
    if encoding in ("gzip", "x-gzip") and body[:2] != b"\x1f\x8b":
        return body  # unpacked by the archive's writer, which left the header
    if codec := {"gzip": "gzip", "x-gzip": "gzip", "br": "brotli", "zstd": "zstd"}.get(encoding):
        return pa.CompressedInputStream(pa.BufferReader(body), codec).read(longest + 1)
    if encoding == "deflate":
        return zlib.decompressobj(zlib.MAX_WBITS if body[:1] == b"\x78" else -zlib.MAX_WBITS).decompress(body, longest + 1)
    return body


def _fault(html: bytes) -> str | None:
    """What makes a page too expensive to parse."""
    crowded = any(len(tag.split()) > MOST_ATTRIBUTES for tag in re.findall(rb"<[a-zA-Z][^<>]{%d,}" % (2 * MOST_ATTRIBUTES), html))
    return f"html_element_with_over_{MOST_ATTRIBUTES}_attributes" if crowded else None


def _deeper_than(tree: HTMLTree, most: int) -> bool:
    node, depth = tree.document, 0
    while True:
        if (child := node.first_child) is not None:
            node, depth = child, depth + 1
            if depth > most:
                return True
            continue
        while (following := node.next) is None:
            node, depth = node.parent, depth - 1
            if depth <= 0:
                return False
        node = following


def _metas(tree: HTMLTree) -> Headers:
    """Name (or property) and content of every <meta>, names in lower case."""
    metas = tree.document.query_selector_all("meta[content]")[:]  # a slice: iterating the list itself takes time with its square
    return [(name.lower(), meta.getattr("content") or "") for meta in metas if (name := meta.getattr("name") or meta.getattr("property"))]


def _link(tree: HTMLTree, relation: str) -> str | None:
    """Where a page's <link> or <a> of this relation leads."""
    found = tree.document.query_selector(f'link[rel~="{relation}"][href*="://"], a[rel~="{relation}"][href*="://"]')
    return found.getattr("href") if found else None
