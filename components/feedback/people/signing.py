"""Who is ranking: names, codes where they are asked for, and the signed cookie that says it.

    code = invite(session, "Ada")                       # a new code, told once; its salted hash is kept
    token = signed(key, sign_in(session, name, code, codes=True))

Where nobody has a code and only this machine reaches the server, a name is enough. As soon as one person has a code, everybody needs one.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time

from sqlalchemy import select
from sqlalchemy.orm import Session

from components.feedback.people.store import Annotator, Setting
from components.schema.config import BadInput

LONGEST_NAME, DAYS = 60, 30
KEY = "cookie_key"
_LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"  # none that look alike


def invite(session: Session, name: str) -> str:
    """A new code for a person, who is made where they are not there; an older code no longer counts. Errors: BadInput."""
    code = "-".join("".join(secrets.choice(_LETTERS) for _ in range(4)) for _ in range(3))
    salt = secrets.token_hex(16)
    _annotator(session, name).code = f"{salt}${_hashed(code, salt)}"
    return code


def codes_are_set(session: Session) -> bool:
    return session.scalars(select(Annotator.id).where(Annotator.code.is_not(None)).limit(1)).first() is not None


def sign_in(session: Session, name: str, code: str, codes: bool) -> Annotator | None:
    """The person of that name; None where the code is not theirs. Without `codes` a new name makes a new person. Errors: BadInput for a name that is none."""
    if not codes:
        return _annotator(session, name)
    found = session.scalars(select(Annotator).where(Annotator.name == tidy(name))).first()
    salt, _, kept = (found.code if found and found.code else "none$none").partition("$")
    right = hmac.compare_digest(_hashed(code, salt), kept)  # worked out for unknown names too, so that the time tells nothing
    return found if right else None


def tidy(name: str) -> str:
    """A name as it is kept. Errors: BadInput."""
    name = " ".join(name.split())
    if not 1 <= len(name) <= LONGEST_NAME or not re.fullmatch(r"[^\W_][\w .'’@+-]*", name):
        raise BadInput(f"feedback: the name must be 1 to {LONGEST_NAME} letters, digits, spaces and .'@+-_, and begin with a letter or digit, so that everybody can read it. Choose another one")
    return name


def cookie_key(session: Session) -> bytes:
    """What cookies are signed with; made once for a database, so that a restart signs nobody out."""
    found = session.get(Setting, KEY)
    if found is None:
        found = Setting(name=KEY, value=secrets.token_hex(32))
        session.add(found)
        session.flush()
    return bytes.fromhex(found.value)


def signed(key: bytes, who: Annotator, now: float | None = None) -> str:
    """A cookie's value that says who it is, for some weeks, or until they get another code."""
    text = f"{who.id}.{int((time.time() if now is None else now) + DAYS * 86_400)}"
    return f"{text}.{_seal(key, text, who)}"


def signer(session: Session, key: bytes, token: str, now: float | None = None) -> Annotator | None:
    """Who a cookie says it is; None where it is not ours, has run out, or is from before their present code."""
    if not (parts := re.fullmatch(r"([0-9]{1,9})\.([0-9]{1,12})\.([0-9a-f]{64})", token)):
        return None
    who = session.get(Annotator, int(parts[1]))
    if who is None or not hmac.compare_digest(_seal(key, f"{parts[1]}.{parts[2]}", who), parts[3]):
        return None
    return who if int(parts[2]) > (time.time() if now is None else now) else None


def _annotator(session: Session, name: str) -> Annotator:
    name = tidy(name)
    found = session.scalars(select(Annotator).where(Annotator.name == name)).first()
    if found is None:
        found = Annotator(name=name)
        session.add(found)
        session.flush()
    return found


def _hashed(code: str, salt: str) -> str:
    return hashlib.scrypt(code.strip().lower().encode("utf-8", "replace"), salt=salt.encode(), n=2**14, r=8, p=1).hex()


def _seal(key: bytes, text: str, who: Annotator) -> str:
    return hmac.new(key, f"{text}.{who.code or ''}".encode(), hashlib.sha256).hexdigest()
