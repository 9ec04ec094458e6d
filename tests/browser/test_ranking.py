"""The page where people rank, in a real browser: by keys alone, by mouse, by finger; with the server dying; and what nobody may see or run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from components.feedback.people import signing
from components.feedback.people.asking import ask
from components.schema.people import AskConfig
from tests.browser.ranked import Ranked, Somebody
from tests.feedback.people import MODELS, claims, person, question, say

pytestmark = [pytest.mark.services, pytest.mark.timeout(600)]
HOSTILE = "<img src=x onerror=\"document.title='broken'\"><script>document.title='broken'</script>"
PHONE = {"viewport": {"width": 400, "height": 800}, "has_touch": True, "is_mobile": True}


@pytest.fixture(scope="module")
def browser(page: Any) -> Any:
    return page.context.browser


@pytest.fixture
def ranked(tmp_path: Path) -> Iterator[Ranked]:
    with Ranked(tmp_path) as made:
        rows = [question(i, answers=4) for i in range(4)]
        ask(made.store, AskConfig(gold_share=0.0, overlap=2, guide="Prefer what is right."), rows)
        yield made


@pytest.fixture
def ada(ranked: Ranked, browser: Any) -> Iterator[Somebody]:
    somebody = ranked.person(browser, "Ada")
    yield somebody
    assert somebody.complaints == []
    assert {re.match(r"(\w+:/*[^/]*)", url)[1] for url in somebody.asked} <= {somebody.address.partition("/?")[0], "data:"}, "nothing is asked of another server"
    somebody.page.context.close()


def kept(ranked: Ranked, rankings: int) -> dict[str, Any]:
    """Opinions by question."""
    return {one.item.prompt[0]["content"]: one.opinion for one in ranked.wait_for(rankings)}


def test_with_keys_alone_all_is_said_and_stands_in_the_database(ranked: Ranked, ada: Somebody) -> None:
    asked, keys = ada.question, ada.page.keyboard
    number = asked.split()[1][:-1]
    wanted = [f"answer 2 to {number}", f"answer 0 to {number}", f"answer 3 to {number}", f"answer 1 to {number}"]
    ada.order(wanted, tied={wanted[1]})
    ada.go_to(f"answer 1 to {number}")
    keys.press("f")
    keys.press("Tab")
    keys.press("Space")  # hateful: the second one
    keys.press("Escape")
    ada.go_to(f"answer 2 to {number}")
    keys.press("r")
    for _ in range(3):
        keys.press("Tab")
    keys.press("Space")  # helpful 4
    ada.page.locator("li.at").focus()
    keys.press("e")
    keys.press("End")
    keys.type(" and more")
    keys.press("Control+Enter")
    opinion = kept(ranked, 1)[asked]
    assert opinion.ranks == (1, 3, 1, 2) and opinion.flags == ((), ("hateful",), (), ()) and opinion.ratings == ({}, {}, {"helpful": 4}, {})
    assert opinion.edit.text == f"answer 2 to {number} and more" and opinion.edit.answer == 2 and 0 < opinion.seconds < 300


def test_nothing_is_kept_by_a_hasty_key_where_nothing_was_moved(ranked: Ranked, ada: Somebody) -> None:
    asked = ada.question
    ada.page.keyboard.press("Enter")
    ada.page.get_by_text("Press Enter again if this order is right").first.wait_for()
    assert ada.question == asked and ranked.said == []
    ada.next()
    assert kept(ranked, 1)[asked].ranks is not None


def test_all_bad_skip_undo_and_change(ranked: Ranked, ada: Somebody) -> None:
    first, keys = ada.question, ada.page.keyboard
    keys.press("b")
    ada.page.get_by_text("no answer here will be learnt from").wait_for()
    ada.next()
    assert kept(ranked, 1)[first].all_bad and ada.question != first
    second = ada.question
    keys.press("s")
    ada.page.wait_for_function("asked => ![...document.querySelectorAll('.question .text')].some(one => one.innerText === asked)", arg=second)
    keys.press("u")
    ada.page.get_by_text(second).wait_for()
    keys.press("u")
    ada.page.get_by_text(first).wait_for()
    assert ada.page.locator("#bad").get_attribute("aria-pressed") == "true", "what was said before is there to be changed"
    ranked.wait_for(0)
    keys.press("b")
    number = first.split()[1][:-1]
    ada.rank([f"answer {k} to {number}" for k in (3, 2, 1, 0)])
    assert kept(ranked, 1)[first].ranks == (4, 3, 2, 1)
    ada.page.locator("#to-mine").click()
    ada.page.get_by_role("button", name=f"Change: {first}").click()
    ada.page.locator("#list li").first.wait_for()
    ranked.wait_for(0)
    assert ada.question == first and ada.answers[0] == f"answer 3 to {number}"


def test_what_was_begun_is_there_after_a_reload(ranked: Ranked, ada: Somebody) -> None:
    wanted = [*ada.answers[1:], ada.answers[0]]
    ada.order(wanted)
    ada.page.locator("#note").fill("not sure")
    ada.page.reload()
    ada.page.locator("#list li").first.wait_for()
    assert ada.answers == wanted and ada.page.locator("#note").input_value() == "not sure" and ranked.said == []


def test_when_the_server_dies_nothing_is_lost_and_nothing_comes_twice(ranked: Ranked, ada: Somebody) -> None:
    ranked.server.end()
    asked = []
    for waiting in (1, 2):  # the page has questions at hand
        asked.append(ada.question)
        ada.order(ada.answers[::-1])
        ada.next()
        ada.page.get_by_text(f"{waiting} to send, the server does not answer").wait_for()
    context, stored = ada.page.context, "() => Object.keys(localStorage).filter(key => key.startsWith('modelyard/out/')).length"
    assert ada.page.evaluate(stored) == 2
    ada.page.close()  # the browser dies too; what it stored stays
    ranked.server.start()
    ada.page = context.new_page()
    ada.page.goto(ada.address)
    ada.page.locator("#list li").first.wait_for()
    assert set(kept(ranked, 2)) == set(asked) and ada.question not in asked
    ada.page.get_by_text("all kept").wait_for()
    assert ada.page.evaluate(stored) == 0


def test_who_is_signed_out_in_between_signs_in_again_and_what_was_done_is_sent(ranked: Ranked, ada: Somebody) -> None:
    asked = ada.question
    ada.order(ada.answers[::-1])
    code = ranked.store.write(lambda session: signing.invite(session, "Ada"))  # a name alone is no longer enough
    ada.page.keyboard.press("Enter")
    ada.page.get_by_text("You are signed out. What you did is kept").wait_for()
    assert ranked.said == []
    ada.page.get_by_label("Name").fill("Ada")
    ada.page.get_by_label("Code").fill(code)
    ada.page.keyboard.press("Enter")
    ada.page.locator("#list li").first.wait_for()
    assert set(kept(ranked, 1)) == {asked} and ada.question != asked


def test_an_answer_that_was_lost_on_the_way_is_asked_for_again_and_kept_once(ranked: Ranked, ada: Somebody) -> None:
    seen: list[str] = []

    def lose_the_first(route: Any) -> None:
        seen.append(json.loads(route.request.post_data)["submission"])
        answer = route.fetch()
        route.abort() if len(seen) == 1 else route.fulfill(response=answer)

    ada.page.route("**/api/submit", lose_the_first)
    ada.order(ada.answers[::-1])
    ada.next()
    ada.page.get_by_text("all kept").wait_for()
    ranked.wait_for(1)
    assert len(seen) == 2 and seen[0] == seen[1]


def test_an_answer_is_dragged_with_the_mouse_and_with_a_finger(ranked: Ranked, ada: Somebody, browser: Any) -> None:
    before = ada.answers
    handle, top = ada.page.locator("#list .handle").nth(3).bounding_box(), ada.page.locator("#list li").first.bounding_box()
    ada.page.mouse.move(handle["x"] + 8, handle["y"] + 8)
    ada.page.mouse.down()
    ada.page.mouse.move(handle["x"] + 8, top["y"] + 4, steps=8)
    ada.page.wait_for_function("() => document.querySelectorAll('#list .target').length === 1")
    ada.page.mouse.up()
    assert ada.answers == [before[3], *before[:3]]

    bo = ranked.person(browser, "Bo", **PHONE)
    before = bo.answers
    handle, first, second = (bo.page.locator(where).bounding_box() for where in ("#list .handle >> nth=0", "#list li >> nth=0", "#list li >> nth=1"))
    touch = bo.page.context.new_cdp_session(bo.page)
    x, y, far = handle["x"] + 8, handle["y"] + 8, second["y"] - first["y"]
    touch.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]})
    for step in range(1, 9):
        touch.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [{"x": x, "y": y + far * step / 8}]})
    bo.page.wait_for_function("() => document.querySelectorAll('#list .target').length === 1")
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    bo.page.wait_for_function("first => document.querySelector('#list .answer').innerText !== first", arg=before[0])
    assert bo.answers == [before[1], before[0], *before[2:]]
    assert bo.page.evaluate("document.documentElement.scrollWidth") <= 400, "no sideways scrolling on a phone"
    bo.page.context.close()


def test_the_same_ranks_arrive_by_keys_and_by_dragging(ranked: Ranked, ada: Somebody) -> None:
    for done, dragging in enumerate((False, True, True), start=1):
        ranks = (3, 1, 2, 1) if done < 3 else (1, 2, 3, 4)  # the last one asks for nothing to be moved
        asked, said = ada.question, dict(zip(ada.texts, ranks, strict=True))
        ada.place(ranks, dragging)
        ada.next()
        assert kept(ranked, done)[asked].ranks == tuple(said[text] for text in sorted(said))


def test_texts_are_shown_and_never_run_and_models_are_named_nowhere(ranked: Ranked, browser: Any) -> None:
    row = {"prompt": [{"role": "system", "content": HOSTILE}, {"role": "user", "content": HOSTILE}], "answers": [{"text": f"{HOSTILE} {k}", "model": MODELS[k]} for k in range(2)]}
    ask(ranked.store, AskConfig(name="hostile", gold_share=0.0, guide=HOSTILE), [row])
    bo = ranked.person(browser, "Bo")
    bo.page.goto(f"{ranked.server.address}/?dataset=hostile")
    bo.page.get_by_text(HOSTILE).first.wait_for()
    assert bo.page.title() == "Ranking · Modelyard" and bo.page.locator("main img, main script, dialog img").count() == 0
    bo.page.keyboard.press("?")
    assert bo.page.locator("#guide").inner_text() == HOSTILE
    bo.page.keyboard.press("Escape")
    whole = bo.page.content() + bo.page.evaluate("JSON.stringify(localStorage)")
    assert not any(name in whole for name in MODELS) and bo.complaints == []
    bo.page.context.close()


def test_a_screen_reader_has_a_name_for_everything_and_hears_what_moves(ada: Somebody) -> None:
    for view in ("rank", "agreement", "mine"):
        ada.page.locator(f"#to-{view}").click()
        ada.page.wait_for_timeout(300)
        nameless = ada.page.evaluate(
            "() => [...document.querySelectorAll('button, input, textarea, select')].filter(one => one.offsetParent && one.getAttribute('aria-hidden') !== 'true')"
            ".filter(one => !(one.innerText.trim() || one.getAttribute('aria-label') || (one.labels && one.labels.length))).map(one => one.outerHTML)"
        )
        assert nameless == []
    ada.page.locator("#to-rank").click()
    ada.page.locator("#list li").first.wait_for()
    assert ada.page.evaluate("document.activeElement.closest('#list li') !== null"), "the keys work at once"
    ada.page.keyboard.press("3")
    assert re.fullmatch(r"Answer [A-D] is 3rd", ada.page.locator("#said").inner_text())
    assert ada.page.locator("#list li").nth(2).get_attribute("aria-label").endswith("3rd of 4")


def test_who_has_done_all_is_told_so_and_sees_how_far_people_agree(ranked: Ranked, ada: Somebody) -> None:
    bo = person(ranked.store, "Bo")
    for number, claim in enumerate(claims(ranked.store, bo, ahead=4)):
        say(ranked.store, bo, claim, [1, 2, 3, 4], f"bo-{number:08}")
    for left in range(4, 0, -1):
        number = ada.question.split()[1][:-1]
        order = [f"answer {k} to {number}" for k in range(4)]
        ada.order(order if left > 1 else order[::-1])
        ada.page.keyboard.press("Enter") if left == 1 else ada.next()
    ada.page.get_by_text("That is all for you").wait_for()
    ranked.wait_for(8)
    ada.page.get_by_role("button", name="How far do we agree?").click()
    ada.page.locator(".tiles").wait_for()
    text = ada.page.locator("main").inner_text()
    assert "of 4 questions, 4 of them by more than one person" in text and "you" in text and "person 2" in text and "Bo" not in text
    assert re.search(r"0\.\d\d", ada.page.locator(".value").first.inner_text())


def test_codes_are_asked_for_where_they_are_set(ranked: Ranked, browser: Any) -> None:
    code = ranked.store.write(lambda session: signing.invite(session, "Cy"))
    page = browser.new_page()
    page.set_default_timeout(60_000)
    page.goto(ranked.server.address)
    page.get_by_label("Name").fill("Cy")
    page.get_by_label("Code").fill("wrong-wrong-wrong")
    page.keyboard.press("Enter")
    page.get_by_text("There is no such name and code.").wait_for()
    page.get_by_label("Code").fill(code)
    page.keyboard.press("Enter")
    page.locator("#list li").first.wait_for()
    page.close()
