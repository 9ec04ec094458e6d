"""Personal data: what is found, what only looks like it, Luhn's sum, the screen before the search, and texts made to keep the patterns busy."""

from __future__ import annotations

import time

import pytest

from components.data.filtering import pii

FOUND = {
    "email": [
        ("Mail jane.doe+x@mail.example.co.uk, please.", "Mail <EMAIL>, please."),
        ("<jane@doe.org>", "<<EMAIL>>"),
        ("(jane_doe@doe.org).", "(<EMAIL>)."),
        ("a@b.org;c@d.org", "<EMAIL>;<EMAIL>"),
        ("mailto:jane@doe.org?subject=x", "mailto:<EMAIL>?subject=x"),
    ],
    "phone": [
        ("call (212) 555-0187 now", "call <PHONE> now"),
        ("212-555-0187", "<PHONE>"),
        ("212.555.0187.", "<PHONE>."),
        ("1-800-555-0199", "<PHONE>"),
        ("+1 (212) 555-0187", "<PHONE>"),
        ("+44 20 7946 0958", "<PHONE>"),
        ("+49 (0) 30 1234567", "<PHONE>"),
        ("+4915112345678", "<PHONE>"),
        ("+33 1 23 45 67 89", "<PHONE>"),
        ("020 7946 0958", "<PHONE>"),
        ("030/1234567", "<PHONE>"),
        ("01 23 45 67 89", "<PHONE>"),
        ("Tel: 5550187", "Tel: <PHONE>"),
        ("Call us at 555 0187 today", "Call us at <PHONE> today"),
        ("Phone number is 212 555 0187.", "Phone number is <PHONE>."),
        ("In 2019 (212) 555-1234 rang", "In 2019 <PHONE> rang"),
    ],
    "ip": [
        ("from 93.184.216.134 port", "from <IP_ADDRESS> port"),
        ("IP: 5.9.56.12", "IP: <IP_ADDRESS>"),
        ("http://93.184.216.34:80/x", "http://<IP_ADDRESS>:80/x"),
        ("2606:2800:220:1:248:1893:25c8:1946", "<IP_ADDRESS>"),
        ("at 2a00:1450:4001:81b::200e.", "at <IP_ADDRESS>."),
    ],
    "card": [
        ("4111 1111 1111 1111", "<CARD>"),
        ("5500-0000-0000-0004", "<CARD>"),
        ("378282246310005", "<CARD>"),
        ("3782 822463 10005", "<CARD>"),
        ("card 4012888888881881.", "card <CARD>."),
    ],
    "key": [
        ("id AKIAIOSFODNN7EXAMPLE;", "id <KEY>;"),
        ("aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "<KEY>"),
        ("ghp_" + "a1B2" * 9, "<KEY>"),
        ("github_pat_" + "a1B2_" * 10, "<KEY>"),
        ("OPENAI=sk-proj-abc123DEF456ghi789JKL", "OPENAI=<KEY>"),
        ("sk-" + "0a1b2c3d" * 4, "<KEY>"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U", "<KEY>"),
        ("x\n-----BEGIN RSA PRIVATE KEY-----\nMIIE\nabc=\n-----END RSA PRIVATE KEY-----\ny", "x\n<KEY>\ny"),
        ("AIza" + "SyA1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6Q", "<KEY>"),
        ("token=xoxb-123456789012-abcdefGHIJ", "token=<KEY>"),
    ],
}
NOT_FOUND = {
    "email": ["logo@2x.png", "@app.route", "a @ b", "git@github.com:owner/name.git", "user@localhost", "lodash@4.17.21", "me@.org", "@jane.doe wrote"],
    "phone": [
        "2021-03-04", "12.05.2020", "01/02/2020", "01-02-2020", "2024-01-02T10:20:30", "10:15 - 12:30", "09:00-17:30",
        "ISBN 978-3-16-148410-0", "ISBN 0-306-40615-2", "ISBN 0306406152", "9780306406157", "ISSN 1234-5678",
        "1,234,567,890", "3.14159265358979", "population 1 234 567", "2019-2020-2021", "1990 1991 1992 1993", "0.123 0.456 0.789",
        "+5 10 15 20 25", "12345678", "id=2125550187", "https://x.org/212-555-0187/", "1-2-3-4-5-6-7-8", "100-200-3000", "2147483647",
        "$1,000-2,000", "5-4-3-2-1", "call 911", "123-45-6789", "text 2020", "00 01 02 03 04 05 06 07", "555-0187",
    ],
    "ip": [
        "127.0.0.1", "192.168.1.1", "10.0.0.255", "172.16.3.100", "203.0.113.7", "8.8.8.8", "version 1.2.3.4", "v10.2.131.4", "Chrome/91.0.4472.124",
        "release 2.6.32.171", "section 3.2.1.4", "3.14.15.92", "256.300.1.2", "1.2.3.4.500", "2001:db8::1", "fe80::1", "::1", "12:30:45", "std::vector",
        "a[1::2]", "dead::beef", "00:1a:2b:3c:4d:5e",
    ],
    "card": ["4111 1111 1111 1112", "1234567890123456", "0000 0000 0000 0000", "9780306406157", "4111.1111.1111.1111", "41111111111111111111111", "4 111 111 111 111 111 1"],
    "key": ["task-manager-with-a-very-long-name", "sk-learn-contrib-a-very-long-name", "AKIA", "MAKIAIOSFODNN7EXAMPLE", "EYJafjallajökull", "-----BEGIN PUBLIC KEY-----\nabc\n-----END PUBLIC KEY-----", "-----BEGIN PRIVATE KEY-----\nnever ends", "eyJhbGciOi.only.two"],
}  # fmt: skip


@pytest.mark.parametrize(("kind", "text", "expected"), [(kind, *pair) for kind, pairs in FOUND.items() for pair in pairs])
def test_personal_data_is_replaced_by_its_placeholder(kind: str, text: str, expected: str) -> None:
    replaced, counts = pii.replaced(text, (kind,))
    assert replaced == expected
    assert counts == {kind: expected.count(pii.PLACEHOLDERS[kind])}
    assert pii.replaced(text, pii.KINDS)[0] == expected  # no other kind takes it first


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in NOT_FOUND.items() for text in texts])
def test_what_only_looks_like_personal_data_stays(kind: str, text: str) -> None:
    assert pii.replaced(text, (kind,)) == (text, {})
    assert pii.replaced(f"See {text} there", (kind,))[0] == f"See {text} there"


@pytest.mark.parametrize("kind", pii.KINDS)
def test_a_kind_that_is_not_asked_for_stays(kind: str) -> None:
    others = [k for k in pii.KINDS if k != kind]
    text = "\n".join(text for text, _ in FOUND[kind])
    assert pii.PLACEHOLDERS[kind] not in pii.replaced(text, others)[0]


def test_luhn_agrees_with_known_numbers() -> None:
    valid = ["4111111111111111", "5500000000000004", "378282246310005", "6011111111111117", "30569309025904", "3530111333300000", "79927398713", "0", "18"]
    assert all(map(pii.luhn, valid))
    for number in valid[:7]:
        changed = [number[:i] + str((int(d) + 1) % 10) + number[i + 1 :] for i, d in enumerate(number)]
        assert not any(map(pii.luhn, changed))  # every error in one digit is seen


def test_replacing_twice_changes_nothing_more() -> None:
    text = "\n".join(text for pairs in FOUND.values() for text, _ in pairs)
    once, counts = pii.replaced(text, pii.KINDS)
    assert sum(counts.values()) >= sum(map(len, FOUND.values()))
    assert pii.replaced(once, pii.KINDS) == (once, {})


def test_the_screen_lets_everything_through_that_the_search_finds() -> None:
    for pairs in FOUND.values():
        texts = [f"Some words before. {text} And after." for text, _ in pairs]
        for text, kinds in zip(texts, pii.suspects(texts), strict=True):
            assert pii.replaced(text, kinds) == pii.replaced(text, pii.KINDS), text


def test_the_screen_spares_ordinary_prose_the_search() -> None:
    prose = "In 2019, some 1,200 people (about 30 %) came at 10:30; see e.g. chapter 3.2... It cost $5.50 - or less - and was well-received."
    assert pii.suspects([prose, "x@y", ""]) == [(), ("email",), ()]


N = 1_000_000
BUSY = {
    "one word": "a" * N, "addresses without hosts": "a@" * (N // 2), "dots": "1." * (N // 2), "digits": "1" * N, "spaced digits": "1 " * (N // 2),
    "colons": ":" * N, "hex and colons": "1:" * (N // 2), "tokens begun": "eyJ" * (N // 3), "tokens half done": "eyJaaaaaaaaa." * (N // 13),
    "private keys begun": "-----BEGIN PRIVATE KEY-----" * (N // 27), "private keys without end": "-----BEGIN PRIVATE KEY-----" * 1000 + "a" * N,
    "a key without end": "sk-" + "a" * N, "sk": "sk-" * (N // 3), "plus": "+1" * (N // 2), "areas": "(212) " * (N // 6), "zeros": "0 12 " * (N // 5),
    "hosts": "x@a.a.a.a.a.a.a" * (N // 15), "announced": "tel 1 " * (N // 6), "a long local part": "a.b" * (N // 3) + "@x.org",
}  # fmt: skip


@pytest.mark.parametrize("name", BUSY)
def test_no_text_keeps_the_patterns_busy(name: str) -> None:
    began = time.process_time()
    pii.replaced(BUSY[name], pii.KINDS)
    assert time.process_time() - began < 3
