"""Permissions: which documents may be taken, by their licence, their site's robots.txt, and what page and owner say.

    permissions = Permissions(config.collect)
    permissions.refusal(url, licence)                  # None, or the reason: opted_out_domain, robots_txt_forbids,
                                                       # licence_denied, licence_not_allowed, licence_unknown
    page_opts_out(http_headers, metas, agents)         # noai_in_page: of HTML, and of HTTP responses

robots.txt is read by RFC 9309, which is why urllib.robotparser does not do: it takes the first rule that matches where the
RFC takes the longest, and knows no * or $ in paths, so it would both forbid and allow pages against their owners' words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from components.data.reading import licences
from components.schema.config import BadInput
from components.schema.data import CollectConfig
from components.schema.records import digest, file_md5

ROBOTS_BYTES = 512_000  # RFC 9309 asks for the first 500 KiB
_OPT_OUTS = {"noai", "noimageai", "noindex", "none"}
_WITH_VALUES = {"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"}  # directives with a colon of their own
Rule = tuple[str, bool]


class Permissions:
    """What a CollectConfig lets through. Errors: BadInput where its folder of robots.txt files is not there."""

    def __init__(self, config: CollectConfig) -> None:
        self.config = config
        self.opted_out = {host for one in config.opt_out_domains if (host := host_of(one))}
        self.folder = _robots_folder(config.robots) if config.robots else None
        self._robots: dict[str, Robots | None] = {}

    def refusal(self, url: str | None, licence: str | None) -> str | None:
        """Why a document must not be taken; None: it may. `licence` is an SPDX id, or None where none is known."""
        host = host_of(url) if url else None
        if host and self.opted_out and not self.opted_out.isdisjoint(_with_parents(host)):
            return "opted_out_domain"
        if host and self.folder and not self._robots_allow(host, url):
            return "robots_txt_forbids"
        if licence is None:
            drops = (self.config.unknown_licence or ("drop" if self.config.allow_licences else "take")) == "drop"
            return "licence_unknown" if drops else None
        return licences.refusal(licence, self.config.allow_licences, self.config.deny_licences)

    def _robots_allow(self, host: str, url: str) -> bool:
        if host not in self._robots:
            if len(self._robots) > 10_000:  # a crawl's sites come in runs; what is forgotten is read again
                self._robots.clear()
            self._robots[host] = self._read(host)
        robots = self._robots[host]
        return robots is None or all(robots.allows(agent, _path_of(url)) for agent in self.config.robots_agents)

    def _read(self, host: str) -> Robots | None:
        for name in (host, host.removeprefix("www."), f"www.{host}"):
            file = self.folder / f"{name}.txt"
            if file.is_file():
                with file.open("rb") as stream:
                    return Robots(stream.read(ROBOTS_BYTES).decode("utf-8-sig", "replace"))
        return None


class Robots:
    """The rules of one robots.txt (RFC 9309)."""

    def __init__(self, text: str) -> None:
        self.groups: dict[str, list[Rule]] = {}
        agents: list[str] = []
        open_to_agents = True  # consecutive user-agent lines head one group
        for line in text.splitlines():
            field, _, value = (part.strip() for part in line.partition("#")[0].partition(":"))
            field = field.lower()
            if field == "user-agent":
                agent = value.lower().partition("/")[0].strip()  # a version is no part of the name
                agents = [*agents, agent] if open_to_agents else [agent]
                open_to_agents = True
                self.groups.setdefault(agent, [])
            elif field in ("allow", "disallow"):
                open_to_agents = False
                for agent in agents if value else ():  # an empty rule forbids nothing
                    self.groups[agent].append((unquote(value), field == "allow"))

    def allows(self, agent: str, path: str) -> bool:
        """Whether an agent may take a path (with its query): the longest rule that matches decides, Allow where two are equally long."""
        rules = self.groups.get(agent.lower(), self.groups.get("*", []))
        return max((len(pattern), allow) for pattern, allow in [("", True), *rules] if _matches(pattern, path))[1]


def fingerprint(config: CollectConfig) -> str | None:
    """What the robots.txt files say at this moment, as a string that changes when they change. None: there are none."""
    folder = Path(config.robots) if config.robots else None
    return digest({file.name: file_md5(file) for file in sorted(folder.glob("*.txt"))}) if folder and folder.is_dir() else None


def page_opts_out(headers: Iterable[tuple[str, str]], metas: Iterable[tuple[str, str]], agents: Iterable[str]) -> bool:
    """Whether a page's HTTP headers (name, value) or HTML metas (name, content) ask not to be used.

    Read are X-Robots-Tag and <meta name="robots"> (or one of our agents) with noai, noimageai, noindex or none, and
    tdm-reservation: 1, where the HTML's word goes over the header's (TDM Reservation Protocol, W3C Community Group 2024, section 6).
    """
    names = {"robots", "*", *(agent.lower() for agent in agents)}
    reserved: str | None = None
    for name, value in headers:
        if name.lower() == "x-robots-tag" and _tag_opts_out(value, names):
            return True
        if name.lower() == "tdm-reservation":
            reserved = value.strip()
    for name, value in metas:
        if name.lower() in names and _OPT_OUTS & {word.strip().lower() for word in value.split(",")}:
            return True
        if name.lower() == "tdm-reservation" and value.strip() in ("0", "1"):
            reserved = value.strip()
    return reserved == "1"


def host_of(url: str) -> str | None:
    """The host of an address or of a bare domain, in lower case; None where there is none."""
    try:
        host = urlsplit(url if "//" in url else f"//{url}").hostname
    except ValueError:  # brackets that hold no address
        return None
    return host.rstrip(".") if host and len(host) < 254 else None


def _with_parents(host: str) -> list[str]:
    """www.example.org -> www.example.org, example.org, org."""
    parts = host.split(".")
    return [".".join(parts[i:]) for i in range(len(parts))]


def _path_of(url: str) -> str:
    parts = urlsplit(url if "//" in url else f"//{url}")
    return unquote((parts.path or "/") + (f"?{parts.query}" if parts.query else ""))


def _matches(pattern: str, path: str) -> bool:
    """RFC 9309, 2.2.3: a rule is the beginning of a path, * is any text and $ at its end the path's end. In linear time, whoever wrote it."""
    anchored = pattern.endswith("$")
    first, *rest = pattern.removesuffix("$").split("*")
    if not path.startswith(first):
        return False
    at = len(first)
    if not rest:
        return not anchored or at == len(path)
    *middle, last = rest
    for part in middle:
        at = path.find(part, at)
        if at < 0:
            return False
        at += len(part)
    return path.endswith(last) and len(path) - len(last) >= at if anchored else path.find(last, at) >= 0


def _tag_opts_out(value: str, names: set[str]) -> bool:
    """X-Robots-Tag: directives, from `agent:` on only for that agent."""
    ours = True
    for part in value.split(","):
        if (named := re.match(r"\s*([\w-]+)\s*:(.*)", part)) and named[1].lower() not in _WITH_VALUES:
            ours, part = named[1].lower() in names, named[2]
        if ours and part.strip().lower() in _OPT_OUTS:
            return True
    return False


def _robots_folder(path: str) -> Path:
    folder = Path(path)
    if not folder.is_dir() or not any(folder.glob("*.txt")):
        what = "holds no robots.txt file" if folder.is_dir() else "is not a folder"
        raise BadInput(f"collect.robots: {folder} {what}, so nothing would be forbidden. Put files named by host there (example.org.txt), or leave `robots` out")
    return folder
