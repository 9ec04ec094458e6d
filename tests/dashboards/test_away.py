"""What the pages say where no server answers, and that nobody gets past the signing in."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("streamlit", reason="streamlit is not installed: pip install -e '.[dashboard]'")

from streamlit.testing.v1 import AppTest

from dashboards import app

HERE = Path(app.__file__).parent
NOBODY = "http://127.0.0.1:9"  # the discard port: nothing listens there


@pytest.fixture(autouse=True)
def nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PREFECT_API_URL": f"{NOBODY}/api", "MLFLOW_TRACKING_URI": NOBODY, "MODELYARD_SERVING_URL": NOBODY}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("PREFECT_API_AUTH_STRING", raising=False)


@pytest.mark.parametrize("name", [name for name, _, _ in app.PAGES])
def test_a_page_says_in_a_sentence_which_server_does_not_answer(name: str) -> None:
    shown = AppTest.from_file(str(HERE / f"screens/{name}.py"), default_timeout=30).run()
    assert not shown.exception
    said = " ".join(element.value for element in (*shown.warning, *shown.error))
    assert f"does not answer at {NOBODY}" in said
    assert "Traceback" not in said


def test_where_an_account_is_set_nothing_is_shown_before_signing_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "ada:a long password")
    shown = AppTest.from_file(str(HERE / "app.py"), default_timeout=30).run()
    assert [one.label for one in shown.text_input] == ["User", "Password"]
    assert not shown.warning and not shown.header  # no page ran


def test_a_wrong_password_is_refused_and_the_right_one_opens_the_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "ada:a long password")
    shown = AppTest.from_file(str(HERE / "app.py"), default_timeout=30).run()
    shown.text_input[0].input("ada")
    shown.text_input[1].input("a long passwort")
    shown.button[0].click().run()
    assert [one.value for one in shown.error] == ["No such user and password. They are those of the Prefect server."]
    shown.text_input[0].input("ada")
    shown.text_input[1].input("a long password")
    shown.button[0].click().run()
    assert [one.value for one in shown.header] == ["Now"]


def test_no_folder_called_pages_lies_beside_the_entry_point() -> None:
    """Streamlit would serve what lies in it by itself, before our code has asked who is there."""
    assert not (HERE / "pages").exists()
    assert {path.stem for path in (HERE / "screens").glob("*.py")} - {"__init__"} == {name for name, _, _ in app.PAGES}
