"""Every page of the dashboard in a real browser, over a real MLflow and Prefect, on a desk and on a phone."""

from __future__ import annotations

import random
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("streamlit", reason="streamlit is not installed: pip install -e '.[dashboard]'")

from streamlit.testing.v1 import AppTest

from components.schema.serving import ServeConfig
from dashboards.app import PAGES
from tests.browser.shown import ROOT, RUNNING, STANDS, STEPS, Shown, stands
from tests.serving.conftest import Served, serving, two_models  # noqa: F401  a fixture

pytestmark = [pytest.mark.services, pytest.mark.timeout(900)]
DESK, PHONE = {"width": 1400, "height": 900}, {"width": 400, "height": 800}


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    """With nothing in them yet."""
    with Shown(tmp_path_factory.mktemp("shown")) as found:
        found.prefect()
        yield found


@pytest.fixture(scope="module")
def shown(servers: Shown) -> Shown:
    servers.fill(lines=3, models=2)
    return servers


@pytest.fixture(scope="module")
def endpoints(two_models: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Served]]:  # noqa: F811
    """Two real ones, each with a small model that never learnt anything."""
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setenv("MODELYARD_HOME", str(tmp_path_factory.mktemp("home")))
        yield [stack.enter_context(serving(ServeConfig(model=str(model), port=0, name=model.name))) for model in two_models]


@pytest.fixture(scope="module")
def address(shown: Shown, endpoints: list[Served]) -> str:
    return shown.dashboard(MODELYARD_SERVING_URL=",".join(endpoint.url for endpoint in endpoints))


@pytest.fixture(scope="module")
def asked(page: Any) -> list[str]:
    """Every address that the browser asked for, from the first page on."""
    found: list[str] = []
    page.on("request", lambda request: found.append(request.url))
    page.on("websocket", lambda socket: found.append(socket.url))
    return found


def test_on_a_new_platform_every_page_says_what_to_do_first(servers: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    """First in this file: nothing was filled in yet."""
    for name, value in {**servers.environment, "MLFLOW_TRACKING_URI": servers.mlflow, "MODELYARD_SERVING_URL": "http://127.0.0.1:9"}.items():
        monkeypatch.setenv(name, value)
    for name, _, _ in PAGES:
        page = AppTest.from_file(str(ROOT / f"dashboards/screens/{name}.py"), default_timeout=60).run()
        assert not page.exception
        assert any("modelyard" in told.value or "releas" in told.value for told in page.info), name
        assert not page.error and (name == "chat" or not page.warning), name


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
@pytest.mark.parametrize("name", list(STANDS), ids=lambda name: name or "now")
def test_a_page_stands_within_the_screen_and_shows_no_error(page: Any, address: str, asked: list[str], name: str, size: dict[str, int]) -> None:
    page.set_viewport_size(size)
    stands(page, address, name)
    assert page.locator("[data-testid=stException]").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    assert page.evaluate("document.querySelector('.stMainBlockContainer').getBoundingClientRect().right") <= size["width"]


def test_the_champion_and_what_it_was_made_of_are_drawn(page: Any, address: str) -> None:
    page.set_viewport_size(DESK)
    stands(page, address, "releases?version=models:/model-001/1")
    page.get_by_role("heading", name="model-001 1").wait_for()
    drawn = page.locator("[data-testid=stGraphVizChart] g.node").all_text_contents()
    assert set(" ".join(drawn).split()) >= {"release", "evaluate", "ppo", "reward", "sft", "pretrain", "tokens", "preferences"}


def test_what_a_model_wrote_is_shown_as_it_is_and_never_becomes_html(page: Any, address: str) -> None:
    stands(page, address, "compare")
    page.get_by_text("<script>document.title").first.wait_for()
    assert page.locator("img[onerror]").count() == 0
    assert page.title() != "broken"


def test_clusters_of_copies_are_browsed_with_their_texts(page: Any, address: str) -> None:
    stands(page, address, "data")
    page.get_by_role("tab", name="Copies").click()
    page.get_by_text("30 clusters").wait_for()
    page.get_by_text("40 documents").click()
    page.get_by_text("<script>document.title").locator("visible=true").first.wait_for()
    page.get_by_label("Holds the words").fill("the tide 7")
    page.get_by_label("Holds the words").press("Enter")
    page.get_by_text("1 clusters").wait_for()
    assert page.locator("img[onerror]").count() == 0


def test_the_data_card_is_shown_and_its_scripts_do_not_run(page: Any, address: str) -> None:
    stands(page, address, "data")
    page.get_by_role("tab", name="Data card").click()
    page.frame_locator("iframe").get_by_role("heading", name="Data card: made for a test").wait_for()


def test_the_curve_of_a_stage_that_trains_goes_on_by_itself(page: Any, shown: Shown, address: str) -> None:
    run = shown.stage(RUNNING, "pretrain", "none", int(time.time() * 1000), random.Random(0), "RUNNING")
    try:
        stands(page, address, "")
        page.get_by_text(f"step 591 of {STEPS}").wait_for()
        shown.call("runs/log-batch", run_id=run, metrics=[{"key": "loss", "value": 0.1, "timestamp": int(time.time() * 1000), "step": 595}])
        page.get_by_text(f"step 596 of {STEPS}").wait_for(timeout=60_000)  # nobody loads the page anew
    finally:
        shown.call("runs/update", run_id=run, status="KILLED")


def test_two_models_answer_side_by_side_and_the_exact_prompt_is_told(page: Any, address: str, endpoints: list[Served]) -> None:
    page.set_viewport_size(DESK)
    stands(page, address, "chat")
    page.get_by_label("Beside it").click()
    page.get_by_role("option", name="two at").click()
    page.get_by_text("Sampling and system message").click()
    page.get_by_label("Longest answer, in tokens").fill("12")
    page.get_by_label("Longest answer, in tokens").press("Enter")
    page.get_by_placeholder("Write to the model").fill("Hi there")
    page.get_by_placeholder("Write to the model").press("Enter")
    page.get_by_text("New conversation").wait_for(timeout=120_000)
    answers = page.locator("[data-testid=stChatMessage] [data-testid=stCode]").all_inner_texts()
    assert len(answers) == 3 and answers[0].strip() == "Hi there"
    assert answers[1].strip() and answers[2].strip() and answers[1] != answers[2]
    page.get_by_text("Exact prompt").click()
    for name in ("one", "two"):
        page.get_by_text(f"{name} was given").wait_for()
    exact = endpoints[0].http.post("/tokenize", json={"messages": [{"role": "user", "content": "Hi there"}]}).json()["prompt"]
    assert "Hi there" in exact and exact != "Hi there"
    assert [text.strip() for text in page.locator("[data-testid=stCode]").all_inner_texts()].count(exact.strip()) == 2


def test_what_an_endpoint_refuses_is_told_in_its_own_words(page: Any, address: str) -> None:
    stands(page, address, "chat")
    page.get_by_placeholder("Write to the model").fill("word " * 2000)
    page.get_by_placeholder("Write to the model").press("Enter")
    page.get_by_text("tokens").and_(page.locator("[data-testid=stAlert] p")).first.wait_for(timeout=120_000)
    assert page.locator("[data-testid=stException]").count() == 0


def test_whoever_is_not_signed_in_sees_no_page_by_its_address_either(page: Any, shown: Shown) -> None:
    guarded = shown.dashboard(PREFECT_API_AUTH_STRING="ada:a long password")
    for name in STANDS:
        page.goto(f"{guarded}/{name}")
        page.get_by_role("textbox", name="Password").wait_for()
        assert page.locator("[data-testid=stMetric], [data-testid=stSelectbox], [data-testid=stAlert]").count() == 0
    page.get_by_role("textbox", name="User").fill("ada")
    page.get_by_role("textbox", name="Password").fill("a long password")
    page.get_by_role("button", name="Sign in").click()
    page.locator("[data-testid=stMetric]").first.wait_for()


def test_no_request_left_the_machine(page: Any, address: str, asked: list[str]) -> None:
    """Last in this file: what all the others made the browser ask for counts too."""
    stands(page, address, "releases")
    stands(page, address, "")
    assert asked, "the browser asked for nothing"
    elsewhere = {url for url in asked if urllib.parse.urlsplit(url).hostname not in ("127.0.0.1", None)}
    assert not elsewhere
