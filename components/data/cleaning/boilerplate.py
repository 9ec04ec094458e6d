"""Lines that are the furniture of a page and not part of its text: cookie notices, navigation, share buttons, copyright footers.

    kept, removed = without_boilerplate("Home | About | Contact\nA real sentence.\n© 2019 Acme. All rights reserved.")
    kept                     # "A real sentence."
    removed                  # {"navigation": 1, "copyright_footer": 1}

A line goes when the whole of it looks like a row of the table below, white space and case aside; a sentence that only speaks of cookies, menus or
copyright stays. So there are few false alarms, and furniture in words of a page's own stays: the quality rules look at that. The table
was written from English pages, with the commonest phrases of German, French and Spanish.
"""

from __future__ import annotations

import re
from collections import Counter

LONGEST = 300  # characters; longer lines are prose


def _any(*phrases: str) -> str:
    return "(?:" + "|".join(phrases) + ")"


# What stands on a line of its own only as furniture; and what does so in company (`Home | News | Events`), and may be a heading alone.
_PLACE = _any(
    "home(?: ?page)?", "about (?:us|me)", "contact(?: us)?", "menu", "search", "log ?in", "log ?out", "sign ?(?:in|up|out)", "my account", "my profile",
    "(?:my |shopping |view )(?:cart|basket)", "checkout", "wish ?list", "site ?map", "privacy (?:policy|notice|statement)", "legal notice", "rss feeds?",
    "terms (?:of|and|&) (?:use|service|conditions)", "cookies? (?:policy|settings|preferences|notice)", "advertise with us", "accessibility statement",
    "impressum", "datenschutz(?:erklärung)?", "kontakt", "startseite", "accueil", "mentions légales", "aviso legal", "next page", "previous page",
)  # fmt: skip
_ITEM = _any(
    _PLACE, "about", "account", "advertis(?:e|ing)", "archives?", "back", "blog", "careers", "cart", "categories", "close", "conditions", "contacto",
    "cookies?", "deutsch", "disclaimer", "english", "español", "events", "faqs?", "feedback", "forums?", "français", "gallery", "help", "inicio", "jobs",
    "legal", "more", "news", "next", "press", "prev(?:ious)?", "privacy", "products", "register", "rss", "services", "shop", "store", "support", "tags",
    "terms", "top", "up",
)  # fmt: skip
_SITE = _any(
    "facebook", "twitter", "x", "google ?\\+?", "google plus", "linked ?in", "pinterest", "reddit", "tumblr", "whats ?app", "telegram", "e-?mail", "print",
    "instagram", "you ?tube", "vk", "stumble ?upon", "digg", "delicious", "pocket", "buffer", "flipboard", "messenger", "skype", "xing", "copy link", "more",
)  # fmt: skip
_BAR = r"[|·•»›>/]"
_END = r"[\s.!…»›>→:]*"
_YEARS = r"(?:19|20)\d\d(?:\s*[-–]\s*(?:(?:19|20)?\d\d|present))?"
_SITE_WORDS = r"\b(?:web ?site|site|experience|analy[sz]e|analytics|traffic|personali[sz]e|browsing|consent|policy|services|functionality|advertising)\b"

# Kind, and what the whole line looks like in lower case.
RULES: tuple[tuple[str, str], ...] = (
    ("cookie_notice", r"(?:this|our|the) (?:web ?site|site|page|blog) uses? (?:[\w-]+ ){0,4}cookies\b.*"),
    ("cookie_notice", rf"we (?:and our partners )?use (?:[\w-]+ ){{0,4}}cookies\b.*{_SITE_WORDS}.*"),
    ("cookie_notice", r"by (?:continuing|using|browsing|clicking|visiting|closing)\b.*\b(?:agree|accept|consent)\b.*\b(?:cookies?|privacy|terms)\b.*"),
    ("cookie_notice", r"cookies help us (?:deliver|provide|improve)\b.*|this site is protected by recaptcha\b.*"),
    ("cookie_notice", rf"(?:accept|allow|reject|decline|manage)(?: all| our)? cookies{_END}"),
    ("cookie_notice", r"(?:diese|unsere) (?:website|webseite|seite) (?:verwendet|nutzt|benutzt) .{0,40}cookies\b.*|wir (?:verwenden|nutzen) .{0,40}cookies\b.*"),
    ("cookie_notice", r"(?:ce site|nous) (?:utilise|utilisons) .{0,40}cookies\b.*|(?:este sitio(?: web)? utiliza|utilizamos) .{0,40}cookies\b.*"),
    ("navigation", rf"(?:skip|jump|go|back|return) to (?:the )?(?:main |page )?(?:content|navigation|menu|search|top|home ?page|sidebar|footer)(?: of page)?{_END}"),
    ("navigation", rf"(?:toggle|open|close|show|hide|main|primary|mobile|site) (?:the )?(?:main |mobile |side )?(?:navigation|menu|search|sidebar)(?: bar| menu)?{_END}"),
    ("navigation", rf"[|·•»›>\s]*{_PLACE}[|·•»›>\s]*"),
    ("navigation", rf"{_BAR}?\s*{_ITEM}(?:\s*{_BAR}\s*{_ITEM})+\s*{_BAR}?|(?:{_ITEM}\s+){{3,}}{_ITEM}"),
    ("navigation", r"home(?:\s*[>»›]+\s*[^>»›]{1,60})+|you are here:.{0,150}"),
    ("navigation", rf"(?:read|see|show|view|load|learn) (?:more|all)(?: (?:posts|articles|comments|news|stories|about this))?{_END}"),
    ("navigation", rf"continue reading{_END}|read (?:the )?full (?:article|story|post){_END}"),
    ("navigation", r"[«‹<←\s]*(?:older|newer|previous|next|prev) (?:posts?|pages?|articles?|entry|entries|story|comments?)[»›>→:\s]*"),
    ("navigation", rf"page \d{{1,4}} (?:of|/) \d{{1,4}}{_END}"),
    ("share_buttons", rf"share(?: (?:this|it|on|via|with|to|page|post|article|story|now|your friends|your thoughts))*[\s:|,·]*(?:{_SITE}(?:[\s|,·/&]+(?:and |or )?|$))*{_END}"),
    ("share_buttons", rf"(?:tweet(?: this)?|pin it|(?:like|follow|find|join) us(?: (?:on|at))?|(?:like|e-?mail|print) this)(?: (?:page|post|article|story))?[\s:]*{_SITE}?{_END}"),
    ("share_buttons", r"click to (?:share|e-?mail|print|tweet)\b.{0,80}"),
    ("share_buttons", rf"{_SITE}(?:[\s|,·/]+{_SITE})+|\d+ (?:shares?|likes?|tweets?|retweets?){_END}"),
    ("copyright_footer", rf"(?:(?:copyright|&copy;)\s*)?(?:©|\(c\))\s*(?:copyright\s*)?{_YEARS}\b.{{0,150}}"),
    ("copyright_footer", rf"copyright:? {_YEARS}\b(?!.*\b(?:was|were|is|are|has|had|act|law)\b).{{0,80}}"),
    ("copyright_footer", rf"(?:copyright|©) .{{0,80}}\b{_YEARS}[\s.,|]*(?:all rights reserved)?[\s.]*"),
    ("copyright_footer", r".{0,120}\ball rights reserved[\s.]*(?:[|·-].{0,80})?"),
    ("copyright_footer", r"alle rechte vorbehalten[\s.]*|tous droits réservés[\s.]*|todos los derechos reservados[\s.]*"),
    ("copyright_footer", r"(?:proudly )?powered by .{1,40}|(?:web ?)?site (?:designed|built|hosted|developed) (?:and \w+ )?by .{1,40}|theme: .{1,40} by .{1,40}"),
    ("subscription", r"(?:subscribe|sign up|register)(?: now| today| here)? (?:to|for) (?:\w+ ){0,4}(?:newsletters?|mailing list|e-?mail (?:updates|alerts)|rss feed)\b.{0,100}"),
    ("subscription", rf"(?:un)?subscribe{_END}|enter your e-?mail(?: address)?(?: (?:to|here|below|for)\b.{{0,80}})?{_END}|your e-?mail(?: address)?{_END}"),
    ("comment_form", rf"(?:leave|post|add|write|submit) (?:a|your|an?other) (?:reply|comment|review){_END}|(?:no|\d+) (?:comments?|responses?|replies)(?: yet)?{_END}"),
    ("comment_form", r"your e-?mail(?: address)? will not be published\b.*|required fields are marked\b.*|comments are closed.{0,20}|this site uses akismet\b.*"),
    ("comment_form", r"you must be (?:logged|signed) in to (?:post|leave|reply|comment)\b.*|notify me of (?:new|follow-?up)\b.*|save my name, e-?mail\b.*"),
    ("advertisement", rf"(?:advertise?ments?|sponsored(?: (?:links?|content|post))?|ads by \w+|(?:continue reading|story continues) below(?: advertisement)?){_END}"),
    ("advertisement", rf"(?:anzeige|werbung|publicité|publicidad){_END}"),
    ("browser_warning", r"(?:please )?(?:enable|turn on|activate) (?:javascript|cookies)\b.{0,150}|this (?:page|site|video|form) requires javascript\b.*"),
    ("browser_warning", r"(?:javascript|cookies) (?:is|are|must be|seems? to be|appears? to be) (?:\w+ ){0,2}(?:disabled|enabled)\b.{0,150}"),
    ("browser_warning", r"your (?:web )?browser (?:does not|doesn't|is not|isn't|is out of date)\b.{0,200}|you need (?:to enable )?javascript\b.{0,200}"),
)  # fmt: skip

_WHOLE_LINE = re.compile("|".join(f"(?P<{kind}_{i}>{pattern})" for i, (kind, pattern) in enumerate(RULES)))


def kind(line: str) -> str | None:
    """Which kind of boilerplate a line is, or None."""
    if len(line) > LONGEST:
        return None
    found = _WHOLE_LINE.fullmatch(line.strip().lower())
    return found.lastgroup.rpartition("_")[0] if found and found.lastgroup else None


def without_boilerplate(text: str) -> tuple[str, Counter[str]]:
    """The text without its boilerplate lines, and how many went by kind."""
    removed: Counter[str] = Counter()
    kept = []
    for line in text.split("\n"):
        if what := kind(line):
            removed[what] += 1
        else:
            kept.append(line)
    return ("\n".join(kept) if removed else text), removed
