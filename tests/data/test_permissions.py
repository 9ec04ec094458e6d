"""Licences, robots.txt and opt-outs: what may be taken, and by which name it was refused."""

import urllib.robotparser

import pytest

from components.data.reading import licences
from components.data.reading.permissions import Permissions, Robots, fingerprint, page_opts_out
from components.schema.config import BadInput
from components.schema.data import CollectConfig

SPELLINGS = {
    "CC-BY-4.0": ["cc-by-4.0", "CC BY 4.0", "Creative Commons Attribution 4.0", "https://creativecommons.org/licenses/by/4.0/", "cc_by_4.0"],
    "CC-BY-SA-3.0": ["cc-by-sa-3.0", "Creative Commons Attribution-ShareAlike 3.0 Unported", "http://creativecommons.org/licenses/by-sa/3.0/de/"],
    "CC-BY-NC-ND-4.0": ["CC BY-NC-ND 4.0", "Creative Commons Attribution-NonCommercial-NoDerivatives 4.0 International", "CC-BY-ND-NC-4.0"],
    "CC0-1.0": ["cc0", "CC0 1.0 Universal", "http://creativecommons.org/publicdomain/zero/1.0/"],
    "Apache-2.0": ["apache 2.0", "Apache License, Version 2.0", "License :: OSI Approved :: Apache Software License", "apache-2.0"],
    "MIT": ["mit", "MIT License", "The MIT License (MIT)"],
    "BSD-3-Clause": ["bsd-3-clause", "New BSD License", 'BSD 3-Clause "New" or "Revised" License'],
    "GPL-3.0": ["GPLv3", "gpl-3.0", "GNU General Public License v3 (GPLv3)"],
    "GPL-3.0-or-later": ["GPL-3.0-or-later", "GNU GPLv3+", "GNU General Public License v3 or later (GPLv3+)"],
    "GPL-2.0-only": ["GPL-2.0-only"],
    "LGPL-2.1": ["LGPL-2.1", "GNU Lesser General Public License v2.1"],
    "AGPL-3.0": ["agpl-3.0", "GNU Affero General Public License v3"],
    "MPL-2.0": ["Mozilla Public License 2.0 (MPL 2.0)"],
    "ISC": ["ISC License (ISCL)"],
    "MIT OR Apache-2.0": ["mit OR apache 2.0", "(MIT OR Apache-2.0)"],
    "llama3": ["llama3"],
    None: ["", "unknown", "other", "NOASSERTION", None, "x" * 500],
}


@pytest.mark.parametrize(("id", "name"), [(id, name) for id, names in SPELLINGS.items() for name in names])
def test_the_usual_spellings_of_a_licence_are_one_id(id, name):
    assert licences.spdx(name) == id


def refusal(licence: str | None, url: str | None = None, **config) -> str | None:
    return Permissions(CollectConfig(**config)).refusal(url, licences.spdx(licence))


def test_licences_are_allowed_and_denied_by_pattern_whatever_their_spelling():
    assert refusal("MIT", allow_licences=("CC-BY-*", "mit license")) is None
    assert refusal("CC-BY-SA-4.0", allow_licences=("CC-BY-*",)) is None
    assert refusal("GPL-3.0", allow_licences=("CC-BY-*", "MIT")) == "licence_not_allowed"
    assert refusal("CC-BY-NC-4.0", allow_licences=("CC-BY-*",), deny_licences=("*-NC-*",)) == "licence_denied"
    assert refusal("Creative Commons Attribution 4.0", deny_licences=("cc by 4.0",)) == "licence_denied"
    assert refusal("something of our own") is None


def test_of_licences_to_choose_from_one_must_pass_and_of_licences_that_all_hold_each():
    assert refusal("GPL-2.0 OR MIT", deny_licences=("GPL-*",)) is None
    assert refusal("GPL-2.0 AND MIT", deny_licences=("GPL-*",)) == "licence_denied"
    assert refusal("Apache-2.0 AND MIT", allow_licences=("MIT",)) == "licence_not_allowed"
    assert refusal("(MIT OR GPL-2.0) AND GPL-3.0", allow_licences=("MIT",)) == "licence_not_allowed"


def test_a_document_of_unknown_licence_is_taken_or_not_as_the_recipe_says():
    assert refusal(None) is None
    assert refusal("unknown", unknown_licence="drop") == "licence_unknown"


def test_a_site_that_opted_out_is_left_out_with_all_below_it_and_no_other():
    def opted_out(url: str) -> bool:
        return refusal(None, url, opt_out_domains=("example.org", "https://www.News.com/", "co.uk")) == "opted_out_domain"

    assert all(map(opted_out, ("http://example.org/a", "https://WWW.example.org:8080/", "a.b.example.org/page", "http://www.news.com", "http://x.co.uk")))
    assert not any(map(opted_out, ("http://badexample.org", "http://example.org.net", "http://news.com", "notes/example.org/a.txt", "http://[broken", "")))


def test_the_longest_rule_decides_and_of_two_as_long_the_permission():
    """The examples of RFC 9309, 2.2.2 and 5."""
    robots = Robots(
        "User-Agent: *\nDisallow: *.gif$\nDisallow: /example/\nAllow: /publications/\n\n"
        "User-Agent: foobot\nDisallow:/\nAllow:/example/page.html\nAllow:/example/allowed.gif\n\n"
        "User-Agent: barbot\nUser-Agent: bazbot/1.0\nDisallow: /example/page.html\n\nUser-Agent: quxbot\n"
    )
    assert robots.allows("foobot", "/example/page.html") and not robots.allows("foobot", "/other")
    assert not robots.allows("BazBot", "/example/page.html") and robots.allows("barbot", "/example/picture.gif")
    assert robots.allows("quxbot", "/example/") and robots.allows("other", "/publications/x.html")
    assert not robots.allows("other", "/pictures/a.gif") and robots.allows("other", "/pictures/a.gif?size=1")
    assert Robots("User-agent: a\nAllow: /p\nDisallow: /p").allows("a", "/page")
    assert not Robots("User-agent: a # comment\nDisallow: /a*c*e").allows("a", "/abcde")
    assert Robots("\x00\x01 no robots at all").allows("a", "/")


def test_plain_rules_are_read_as_pythons_own_parser_reads_them():
    text = "User-agent: GPTBot\nDisallow: /\n\nUser-agent: *\nDisallow: /private/\nDisallow: /tmp\n"
    theirs = urllib.robotparser.RobotFileParser()
    theirs.parse(text.splitlines())
    ours = Robots(text)
    for agent in ("GPTBot", "modelyard"):
        for path in ("/", "/private/a", "/private", "/tmp/x", "/tmpfile", "/public"):
            assert ours.allows(agent, path) == theirs.can_fetch(agent, f"http://a.org{path}"), (agent, path)


def test_a_page_that_robots_txt_forbids_to_one_of_our_agents_is_left_out(tmp_path):
    (tmp_path / "a.org.txt").write_text("User-agent: CCBot\nDisallow: /forum\n\nUser-agent: *\nDisallow: /cgi-bin/\n")
    (tmp_path / "b.org.txt").write_bytes(b"\xef\xbb\xbfUser-agent: *\nDisallow: /p%61ge?id=\xff\xff\nDisallow: /x%20y")
    permissions = Permissions(CollectConfig(robots=str(tmp_path)))
    forbidden = ("http://a.org/forum/1", "http://www.a.org/forum", "http://a.org/cgi-bin/x", "http://b.org/x%20y")
    assert [permissions.refusal(url, None) for url in forbidden] == ["robots_txt_forbids"] * 4
    assert [permissions.refusal(url, None) for url in ("http://a.org/", "http://c.org/forum", f"http://{'a' * 5000}.org/", None)] == [None] * 4
    assert Permissions(CollectConfig(robots=str(tmp_path), robots_agents=("GPTBot",))).refusal("http://a.org/forum", None) is None


def test_the_fingerprint_of_robots_files_follows_their_content(tmp_path):
    config = CollectConfig(robots=str(tmp_path / "robots"))
    assert fingerprint(config) is None and fingerprint(CollectConfig()) is None
    (tmp_path / "robots").mkdir()
    (tmp_path / "robots/a.org.txt").write_text("User-agent: *")
    before = fingerprint(config)
    (tmp_path / "robots/a.org.txt").write_text("User-agent: *\nDisallow: /")
    assert before != fingerprint(config)


def test_a_folder_of_robots_files_that_is_not_there_is_refused(tmp_path):
    for folder, what in ((tmp_path / "gone", "is not a folder"), (tmp_path, "holds no robots.txt file")):
        with pytest.raises(BadInput, match=f"{what}.*nothing would be forbidden"):
            Permissions(CollectConfig(robots=str(folder)))


AGENTS = ("GPTBot",)


@pytest.mark.parametrize(
    ("headers", "metas"),
    [
        ([("X-Robots-Tag", "noarchive, NOAI")], []),
        ([("x-robots-tag", "gptbot: noindex")], []),
        ([("X-Robots-Tag", "otherbot: noindex, gptbot: noai")], []),
        ([("X-Robots-Tag", "unavailable_after: 25 Jun 2030, none")], []),
        ([("TDM-Reservation", " 1 ")], []),
        ([], [("robots", "index, noai")]),
        ([], [("GPTBot", "noindex")]),
        ([], [("robots", "NOIMAGEAI")]),
        ([("tdm-reservation", "0")], [("tdm-reservation", "1")]),
    ],
)
def test_a_page_that_asks_not_to_be_used_is_heard(headers, metas):
    assert page_opts_out(headers, metas, AGENTS)


@pytest.mark.parametrize(
    ("headers", "metas"),
    [
        ([], []),
        ([("X-Robots-Tag", "otherbot: noindex, nofollow")], []),
        ([("X-Robots-Tag", "max-snippet: 20, nofollow")], []),
        ([("TDM-Reservation", "1")], [("tdm-reservation", "0")]),  # the page's word goes over the header's
        ([("TDM-Reservation", "2")], []),
        ([], [("robots", "index, follow"), ("description", "noai"), ("googlebot", "noindex")]),
    ],
)
def test_a_page_that_does_not_ask_is_taken(headers, metas):
    assert not page_opts_out(headers, metas, AGENTS)
