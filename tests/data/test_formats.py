"""Files of every format, made by the libraries that people make them with, whole and spoilt."""

import csv
import gzip
import json
import tracemalloc
from datetime import datetime
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from components.data.reading import formats
from components.data.reading.formats import Bytes, Refused

LONGEST = 1000


def pack(path: Path, data: bytes) -> Path:
    path.write_bytes({".gz": gzip.compress, ".zst": zstandard.compress}.get(path.suffix, bytes)(data))
    return path


def read(path: Path, longest: int = LONGEST) -> list[dict | str]:
    return [row.problem or row.values for row in formats.rows(path, longest)]


@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
@pytest.mark.parametrize("kind", ["jsonl", "ndjson", "json", "csv", "tsv"])
def test_a_table_of_every_kind_gives_its_rows_plain_and_compressed(tmp_path, kind, packed):
    wanted = [{"text": f'line, "{i}"\tof\u2028text\nand more', "url": f"http://a.org/{i}"} for i in range(3)]
    if kind in ("csv", "tsv"):
        with (tmp_path / "plain").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["text", "url"], delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            writer.writerows(wanted)
        data = (tmp_path / "plain").read_bytes()
    else:
        data = json.dumps(wanted, indent=1).encode() if kind == "json" else "\n".join(json.dumps(row, ensure_ascii=False) for row in wanted).encode()
    assert read(pack(tmp_path / f"a.{kind}{packed}", data)) == wanted


def test_rows_say_where_they_stand(tmp_path):
    (tmp_path / "a.jsonl").write_text('\n{"text": "one"}\n\n{"text": "two"}\n')
    assert [row.where for row in formats.rows(tmp_path / "a.jsonl", LONGEST)] == [f"{tmp_path}/a.jsonl, line 2", f"{tmp_path}/a.jsonl, line 4"]
    (tmp_path / "a.csv").write_text('text\n"one\nand"\ntwo\n')
    assert [row.where[-6:] for row in formats.rows(tmp_path / "a.csv", LONGEST)] == ["line 2", "line 4"]


def test_each_poisoned_json_line_costs_itself_and_says_why(tmp_path):
    lines = [
        b'{"text": "first"}',
        b'{"text": broken}',
        b'{"text": "\xff\xfe"}',
        b"[1, 2]",
        b"[" * 100_000,
        b'{"text": ' * 100_000,
        b'{"text": "' + b"x" * 10_000_000 + b'"}',
        b"7" * 3000,
        b'{"text": "last"}',
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    assert read(tmp_path / "a.jsonl", 500_000) == [
        {"text": "first"}, "not_json", "not_utf8", "not_an_object", "json_nested_too_deep", "json_nested_too_deep", "longer_than_500000_bytes", "not_an_object", {"text": "last"},
    ]  # fmt: skip


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "one"}')
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbftext\none\n")
    assert read(tmp_path / "a.jsonl") == read(tmp_path / "a.csv") == [{"text": "one"}]


@pytest.mark.parametrize("rows", [10, 60_000])
@pytest.mark.parametrize("packed", [".gz", ".zst"])
def test_a_truncated_stream_keeps_all_before_its_end_and_costs_one_row(tmp_path, packed, rows):
    data = "".join(f'{{"text": "{i * 7919 % 10007}"}}\n' for i in range(rows)).encode()
    whole = pack(tmp_path / f"a.jsonl{packed}", data).read_bytes()
    (tmp_path / f"b.jsonl{packed}").write_bytes(whole[:-3] if packed == ".gz" else whole[: len(whole) * 2 // 3])
    kept = read(tmp_path / f"b.jsonl{packed}")
    assert kept[-1] == f"truncated_{packed[1:]}"
    assert kept[:-1] == read(tmp_path / f"a.jsonl{packed}")[: len(kept) - 1]
    if packed == ".gz":  # only its checksum is lost
        assert len(kept) == rows + 1


def test_damage_in_the_middle_of_a_stream_keeps_what_came_before(tmp_path):
    members = [gzip.compress(f'{{"text": "{i}"}}\n'.encode()) for i in range(9)]
    (tmp_path / "a.jsonl.gz").write_bytes(b"".join(members[:5]) + b"garbage" + b"".join(members[5:]))
    assert read(tmp_path / "a.jsonl.gz") == [*({"text": str(i)} for i in range(5)), "damaged_gz"]


def test_a_json_array_is_read_item_by_item_and_stops_at_a_fault(tmp_path):
    items = [{"text": "x" * n} for n in (10, 3_000_000, 20)]
    (tmp_path / "a.json").write_text(json.dumps(items))
    assert read(tmp_path / "a.json", 2_000_000) == items
    for broken, problem in ((b'[{"text": "a"}, {"text": oops}]', "not_json"), (b'[{"text": "a"}', "not_json"), (b'[{"text": "a"}, {"text": "\xff"}]', "not_utf8")):
        (tmp_path / "b.json").write_bytes(broken)
        assert read(tmp_path / "b.json")[-1] == problem
    (tmp_path / "b.json").write_text('[{"text": "a"}, ' + "[" * 100_000)
    assert read(tmp_path / "b.json") == [{"text": "a"}, "json_nested_too_deep"]


def test_a_broken_csv_row_costs_itself_and_not_what_it_swallowed(tmp_path):
    lines = ['text,n', 'one,1', '"never closed,2', 'three,3', '"quoted" wrong,4', 'too,many,5', "x" * 5000 + ",6", "last,7"]
    (tmp_path / "a.csv").write_text("\n".join(lines) + "\n")
    assert read(tmp_path / "a.csv") == [
        {"text": "one", "n": "1"}, "csv_quoting_broken", {"text": "three", "n": "3"}, "csv_quoting_broken", "csv_row_without_the_headers_number_of_fields",
        "longer_than_1000_bytes", {"text": "last", "n": "7"},
    ]  # fmt: skip
    (tmp_path / "a.csv").write_bytes(b"text\nfine\nd\xe9j\xe0\n" + b'"open\n' + b"more\n" * 2000 + b"end\n")
    kept = read(tmp_path / "a.csv")
    assert kept[:3] == [{"text": "fine"}, "not_utf8", "longer_than_1000_bytes"] and kept[3:] == [{"text": "more"}] * 2000 + [{"text": "end"}]


def test_parquet_gives_the_columns_that_are_needed_in_any_batch_size(tmp_path):
    table = pyarrow.table({"text": [f"{i}" * 50 for i in range(5000)], "n": list(range(5000)), "meta": [{"url": f"u{i}"} for i in range(5000)]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=1700)
    assert read(tmp_path / "a.parquet") == table.to_pylist()
    assert set(next(formats.rows(tmp_path / "a.parquet", LONGEST, ("text", "meta"))).values) == {"text", "meta"}


def test_damaged_parquet_is_one_row_with_a_problem_and_a_bad_value_costs_its_row(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"not parquet at all")
    assert read(tmp_path / "a.parquet") == ["damaged_parquet"]
    table = pyarrow.table({"text": [str(i) * 40 for i in range(20_000)]})
    pyarrow.parquet.write_table(table, tmp_path / "b.parquet", row_group_size=5000, compression="zstd", use_dictionary=False)
    data = bytearray((tmp_path / "b.parquet").read_bytes())
    third = pyarrow.parquet.ParquetFile(tmp_path / "b.parquet").metadata.row_group(2).column(0)
    data[third.data_page_offset : third.data_page_offset + 2000] = b"\xff" * 2000
    (tmp_path / "c.parquet").write_bytes(data)
    kept = read(tmp_path / "c.parquet")
    assert kept[-1] == "damaged_parquet" and kept[:-1] == table.to_pylist()[: len(kept) - 1] and len(kept) > 9000
    times = pyarrow.array([0, 2**62, 86_400_000_000], pyarrow.timestamp("us"))
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", "b", "c"], "created": times}), tmp_path / "d.parquet")
    assert read(tmp_path / "d.parquet") == [{"text": "a", "created": datetime(1970, 1, 1)}, "parquet_row_unreadable", {"text": "c", "created": datetime(1970, 1, 2)}]


def texts(path: Path, longest: int = LONGEST, cut_at: int | None = None) -> list[str]:
    return [piece.reason if isinstance(piece, Refused) else piece for piece in formats.text_pieces(path, longest, cut_at)]


def test_a_text_file_is_whole_or_refused_for_one_reason(tmp_path):
    assert texts(pack(tmp_path / "a.txt.gz", "\ufeffdéjà vu".encode())) == ["déjà vu"]
    (tmp_path / "latin.txt").write_bytes("déjà".encode("latin1"))
    (tmp_path / "long.txt").write_text("x" * 1001)
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(b"some text" * 50)[:-9])
    assert texts(tmp_path / "latin.txt") == ["not_utf8"]
    assert texts(tmp_path / "long.txt") == ["longer_than_1000_bytes"]
    assert texts(tmp_path / "cut.txt.gz") == ["truncated_gz"]


def test_a_long_text_is_cut_at_blank_lines_and_nothing_is_lost(tmp_path):
    paragraphs = [f"paragraph {i} " + "wörd " * 100 for i in range(6000)]  # over three blocks
    (tmp_path / "book.txt").write_text("\n\n".join(paragraphs))
    pieces = texts(tmp_path / "book.txt", cut_at=4000)
    assert "\n\n".join(pieces) == "\n\n".join(paragraphs) and max(map(len, pieces)) <= 4000 and len(pieces) < 1000
    assert pieces == list(formats.cut(["\n\n".join(paragraphs)], 4000)), "the blocks it was read in must not show"
    assert list(formats.cut(["a\nb\n" + "c" * 7], 6)) == ["a\nb", "cccccc", "c"]


def test_a_file_larger_than_memory_is_read_in_blocks(tmp_path):
    with zstandard.open(tmp_path / "a.jsonl.zst", "wb") as file:
        for i in range(60):
            file.write(b'{"text": "%d"}\n' % i + b'{"text": "' + b"y" * 2**20 + b'"}\n')
    pack(tmp_path / "bomb.jsonl.zst", bytes(100 * 2**20))
    pyarrow.default_memory_pool().release_unused()
    before = pyarrow.total_allocated_bytes()
    tracemalloc.start()
    count, arrow = 0, 0
    for name in ("a.jsonl.zst", "bomb.jsonl.zst"):
        for row in formats.rows(tmp_path / name, 2 * 2**20):
            count += row.problem is None
            arrow = max(arrow, pyarrow.total_allocated_bytes() - before)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 120 and peak < 30 * 2**20 and arrow < 30 * 2**20, f"{peak / 2**20:.0f} and {arrow / 2**20:.0f} MiB for 160 MiB"


def test_bytes_count_what_they_gave(tmp_path):
    with Bytes(pack(tmp_path / "a.gz", b"abcdef")) as data:
        assert (data.read(4), data.tell(), data.read(), data.read(), data.tell()) == (b"abcd", 4, b"ef", b"", 6)
