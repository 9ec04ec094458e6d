"""The JSON behind the page: sign in, get questions, send what one thinks of them, look at it again. server.py puts it together."""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Request, Response
from fastapi.responses import PlainTextResponse
from pydantic import Field, StringConstraints
from sqlalchemy.orm import Session

from components.feedback.people import agreement, asking, metrics, signing
from components.feedback.people.assignment import claims, dataset_called, progress
from components.feedback.people.opinions import Said, Sent, as_shown, keep, last_words, said
from components.feedback.people.store import Annotator, Claim, Store
from components.schema.config import Config, Name
from components.schema.people import FLAGS, QUALITIES

COOKIE = "modelyard_feedback"
GUESSED_WRONG_S = 1.0
AHEAD, SHOWN_LAST = 5, 20

router = APIRouter()


def store_of(request: Request) -> Store:
    return request.app.state.store


def codes_of(request: Request) -> bool:
    """Whether people need codes."""
    return request.app.state.needs_codes or store_of(request).read(signing.codes_are_set)


def person(request: Request) -> Annotator | None:
    """Who is signed in. A name that got in without a code is out as soon as codes are asked for."""
    key, cookie = request.app.state.key, request.cookies.get(COOKIE, "")
    found = store_of(request).read(lambda session: signing.signer(session, key, cookie))
    return None if found is None or (found.code is None and codes_of(request)) else found


def signed_in(request: Request) -> Annotator:
    if (found := person(request)) is None:
        raise HTTPException(401, "sign in first")
    return found


Kept = Annotated[Store, Depends(store_of)]
Me = Annotated[Annotator, Depends(signed_in)]


class SignIn(Config):
    name: Annotated[str, StringConstraints(max_length=200)]
    code: Annotated[str, StringConstraints(max_length=200)] = ""


class Next(Config):
    dataset: Name
    ahead: Annotated[int, Field(ge=1, le=AHEAD)] = 1


@router.get("/health")
def health(store: Kept) -> dict[str, str]:
    store.read(signing.codes_are_set)
    return {"status": "ok"}


@router.get("/metrics")
def prometheus(store: Kept) -> PlainTextResponse:
    return PlainTextResponse(metrics.text(store), media_type="text/plain; version=0.0.4")


@router.get("/api/start")
def start(request: Request, store: Kept) -> dict[str, Any]:
    """What the page needs first; `name` is empty where nobody is signed in."""
    if (who := person(request)) is None:
        return {"name": "", "codes": codes_of(request)}
    datasets = [{"name": one["name"], "guide": one["guide"]} for one in store.read(asking.summary)]
    return {"name": who.name, "codes": codes_of(request), "datasets": datasets, "flags": FLAGS, "qualities": QUALITIES}


@router.post("/api/sign-in")
def sign_in(given: SignIn, request: Request, response: Response, store: Kept) -> dict[str, str]:
    codes = codes_of(request)
    found = store.write(lambda session: signing.sign_in(session, given.name, given.code, codes))
    if found is None:
        time.sleep(GUESSED_WRONG_S)  # guessing is slow
        raise HTTPException(401, "no such name and code")
    response.set_cookie(COOKIE, signing.signed(request.app.state.key, found), max_age=signing.DAYS * 86_400, httponly=True, samesite="strict")
    return {"name": found.name}


@router.post("/api/sign-out")
def sign_out(response: Response) -> dict[str, str]:
    response.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return {}


@router.post("/api/next")
def following(asked: Next, who: Me, store: Kept) -> dict[str, Any]:
    """Questions for this person, each theirs until its lease ends, and how far they are."""

    def work(session: Session) -> dict[str, Any]:
        now = time.time()
        held = claims(session, who, asked.dataset, asked.ahead, now)
        return {"items": [_shown(claim) for claim in held], "progress": progress(session, who, asked.dataset, now)._asdict()}

    return store.write(work)


@router.post("/api/submit")
def submit(sent: Sent, who: Me, store: Kept) -> dict[str, int]:
    """Kept when this is answered."""
    return {"revision": store.write(lambda session: keep(session, who, sent, time.time()))}


@router.get("/api/mine")
def mine(dataset: Name, who: Me, store: Kept) -> list[dict[str, Any]]:
    """What this person said last, the newest first, to be looked at and changed."""

    def work(session: Session) -> list[dict[str, Any]]:
        dataset_called(session, dataset)
        latest = [row for row in last_words(session, dataset, who) if row[1].kind != "undo"][-SHOWN_LAST:]
        return [{**_shown(claim), "kind": revision.kind, "opinion": as_shown(claim, revision.opinion)} for claim, revision, _ in reversed(latest)]

    return store.read(work)


@router.get("/api/agreement")
def agreed(dataset: Name, who: Me, store: Kept) -> dict[str, Any]:
    """How far people agree; other people go without their names."""

    def work(session: Session) -> list[Said]:
        dataset_called(session, dataset)
        return said(session, dataset)

    found = agreement.figures(store.read(work))
    people = [{**row, "annotator": "you" if row["annotator"] == who.name else f"person {number}"} for number, row in enumerate(found["by_annotator"], start=1)]
    return {**found, "word": agreement.word(found["alpha"]), "by_annotator": people, "by_item": found["by_item"][:SHOWN_LAST]}


def _shown(claim: Claim) -> dict[str, Any]:
    """A question as the person sees it: nothing about whose answers they are."""
    return {"id": claim.item_id, "prompt": claim.item.prompt, "answers": [claim.item.answers[place]["text"] for place in claim.shown]}
