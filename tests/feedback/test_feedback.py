"""The whole way of a row: what is written, what is left out, and that a killed run ends with the same bytes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from components.data.dialogue.shapes import CHATS, PREFERENCES, convert
from components.feedback import feedback
from components.feedback.feedback import run
from components.feedback.journal import Journal
from components.feedback.local import LocalModel
from components.schema.config import BadInput

from .conftest import rule
from .server import of_model

FILES = ("rows.jsonl", "preferences/pairs.jsonl", "revisions/chats.jsonl", "report.md")


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def files(out: Path) -> list[str]:
    return [(out / name).read_text(encoding="utf-8") for name in FILES]


def test_a_local_critic_makes_pairs_of_answers_and_their_revisions(configured, given, tmp_path):
    outcome = run(configured(), given, tmp_path / "out")
    rows, pairs, chats = (read(tmp_path / "out" / name) for name in FILES[:3])
    assert [row["row"] for row in rows] == list(range(10)) == sorted(row["row"] for row in rows)
    assert outcome.figures["prompts"] == 10 and len(pairs) == outcome.figures["pairs"] > 4
    assert len(pairs) + sum(outcome.figures["dropped"].values()) == 10
    for pair, row in zip(pairs, (row for row in rows if "reason" not in row), strict=True):
        better = (1 - row["first_is_better"][0] + row["first_is_better"][1]) / 2
        assert row["revision_is_better"] == pytest.approx(better)
        assert (pair["chosen"], pair["rejected"])[better < 0.5] == row["revisions"][-1] and pair["revised"] == (better > 0.5)
        assert pair["preference"] == pytest.approx(max(better, 1 - better)) and pair["prompt"] == row["prompt"]
    assert [chat["messages"][-1]["content"] for chat in chats] == [pair["chosen"] for pair in pairs if pair["revised"]]
    assert len(outcome.samples) == 3 and f"| pairs | {len(pairs)} |" in files(tmp_path / "out")[3]


def test_what_is_written_is_a_source_that_the_data_stages_know(configured, given, tmp_path):
    run(configured(), given, tmp_path / "out")
    pairs, chats = read(tmp_path / "out" / FILES[1]), read(tmp_path / "out" / FILES[2])
    for pair in pairs:
        shape, (item,), _ = convert(pair, PREFERENCES)
        assert shape == "dpo" and item == {name: pair[name] for name in ("prompt", "chosen", "rejected")}
    assert chats and all(convert(chat, CHATS)[:2] == ("openai_messages", [{"messages": chat["messages"]}]) for chat in chats)


def test_an_endpoint_around_a_model_gives_what_the_model_gives_here(configured, given, served, tmp_path):
    """Words to the letter, probabilities to rounding: a batch here, single requests there, over a real connection."""
    config = configured()
    here = run(config, given, tmp_path / "here")
    server = served(of_model(LocalModel(given.policy, config.critic.max_new_tokens, 0.0)))
    there = run(configured({"url": server.url, "concurrency": 3}), replace(given, critic=None), tmp_path / "there")
    for a, b in zip(read(tmp_path / "here/rows.jsonl"), read(tmp_path / "there/rows.jsonl"), strict=True):
        assert {name: a.get(name) for name in ("answer", "critiques", "revisions", "by", "principle")} == {
            name: b.get(name) for name in ("answer", "critiques", "revisions", "by", "principle")
        }
        assert b.get("first_is_better") == pytest.approx(a.get("first_is_better"), abs=1e-5)
    assert here.figures["pairs"] == there.figures["pairs"]
    assert all(path == "/v1/chat/completions" and body["model"] == "x" for path, _, body in server.requests)


# ---------------------------------------------------------------- both orders


@pytest.mark.parametrize("bias", [-1.5, 0.0, 1.5])
def test_asking_in_both_orders_cancels_the_pull_of_a_place(configured, given, served, tmp_path, bias):
    """Log-odds 2 for the better answer and `bias` for the first place: one order alone gives 0.62 to 0.97, the mean of both one number."""
    server = served(rule(bias=bias))
    outcome = run(configured({"url": server.url}, orders_must_agree=True), replace(given, critic=None), tmp_path / "out")
    pairs = read(tmp_path / "out/preferences/pairs.jsonl")
    assert len(pairs) == 10 and {pair["chosen"] for pair in pairs} == {"Somebody who likes soup."}

    def sigmoid(x: float) -> float:
        return 1 / (1 + 2.718281828459045**-x)

    wanted = (sigmoid(2 + bias) + sigmoid(2 - bias)) / 2
    assert [pair["preference"] for pair in pairs] == pytest.approx([wanted] * 10)
    assert outcome.figures["position_bias"] == pytest.approx((sigmoid(2 + bias) + sigmoid(bias - 2)) / 2 - 0.5, abs=1e-9)


def test_a_critic_that_always_likes_the_first_says_nothing(configured, given, served, tmp_path):
    server, told = served(rule(bias=9.0, logprobs=False)), []
    outcome = run(configured({"url": server.url}, orders_must_agree=True), replace(given, critic=None), tmp_path / "out", told.append)
    (note,) = [event["text"] for event in told if event["event"] == "note"]
    assert note.startswith("the critic names the same answer in both orders in 0 % of pairs only, and a coin would in 50 %")
    assert outcome.figures == {"prompts": 10, "pairs": 0, "dropped": {"orders_disagree": 10}, "position_bias": 0.5, "orders_agree": 0.0}
    assert files(tmp_path / "out")[1] == "" == files(tmp_path / "out")[2]


def test_weak_preferences_are_left_out(configured, given, served, tmp_path):
    server = served(rule(strength=1.0))  # sigmoid(1) = 0.731
    for least, kept in ((0.73, 10), (0.74, 0)):
        outcome = run(configured({"url": server.url}, min_preference=least), replace(given, critic=None), tmp_path / str(least))
        assert outcome.figures["pairs"] == kept and outcome.figures["dropped"] == ({} if kept else {"preference_too_weak": 10})


def test_a_row_that_cannot_be_judged_falls_out_with_its_reason(configured, given, served, tmp_path):
    def say(messages, body):
        text = messages[-1]["content"]
        number = next((n for n in "0123456789" if f"Tell me about {n}." in text), None)
        if number == "0" and "Rewrite" not in text and "Reply" not in text:
            return "", None
        if number == "1" and "Rewrite" in text:
            return text.partition("Assistant: ")[2].partition("\n\nCritique")[0], None
        if number == "2" and "Reply with one letter" in text:
            return "Both have something.", None
        return rule()(messages, body)

    server = served(say)
    server.before = lambda body, number: (400, '{"error": {"message": "too long"}}', {}) if "Tell me about 3." in body["messages"][-1]["content"] else None
    run(configured({"url": server.url}), replace(given, critic=None), tmp_path / "out")
    reasons = [row.get("reason") for row in read(tmp_path / "out/rows.jsonl")]
    assert reasons == ["critic_is_silent", "revision_changes_nothing", "no_label_in_the_reply", "too_long_for_the_critic_or_refused", *[None] * 6]


def test_a_question_longer_than_the_model_can_read_falls_out(configured, given, tmp_path):
    given.prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ("short", "very " * 1000)))
    run(configured(), given, tmp_path / "out")
    assert [row.get("reason") for row in read(tmp_path / "out/rows.jsonl")][1] == "question_longer_than_context"


def test_each_further_revision_is_of_the_one_before(configured, given, served, tmp_path):
    asked = []

    def say(messages, body):
        asked.append(messages[-1]["content"])
        return (
            ("critique" if "Rewrite" not in asked[-1] else f"revision {sum('Rewrite' in one for one in asked)}", 0.9)
            if "Reply" not in asked[-1]
            else ("A", 0.4)
        )

    server = served(say)
    config = configured({"url": server.url, "concurrency": 1}, revisions=3, max_prompts=1, seed=5)
    run(config, replace(given, critic=None), tmp_path / "out")
    (row,) = read(tmp_path / "out/rows.jsonl")
    assert row["revisions"] == ["revision 1", "revision 2", "revision 3"] and len(row["by"]) == 3
    critiqued = [text for text in asked if "Rewrite" not in text and "Reply" not in text]
    assert [text.count("Assistant: revision 1") for text in critiqued] == [0, 1, 0] and "Assistant: revision 2" in critiqued[2]


# ---------------------------------------------------------------- going on after a kill


def test_a_run_killed_anywhere_ends_with_the_same_bytes(configured, given, tmp_path, monkeypatch):
    run(configured(), given, tmp_path / "whole")

    class Killed(BaseException):
        pass

    add = Journal.add

    def dying(self, rows):
        if len(self.rows) >= 4:
            self._file.write(b'{"row": 4, "half a li')
            self._file.flush()
            raise Killed
        add(self, rows)

    monkeypatch.setattr(Journal, "add", dying)
    with pytest.raises(Killed):
        run(configured(), given, tmp_path / "again")
    assert (tmp_path / "again/work/rows.jsonl").read_bytes().endswith(b"half a li")
    monkeypatch.setattr(Journal, "add", add)
    seen = []
    monkeypatch.setattr(feedback, "_judged", lambda rows, *rest, own=feedback._judged: seen.append([row["row"] for row in rows]) or own(rows, *rest))
    run(configured(), given, tmp_path / "again")
    assert seen == [[4, 5, 6, 7], [8, 9]] and files(tmp_path / "again") == files(tmp_path / "whole")


def test_a_process_killed_by_the_kernel_goes_on_where_it_was(configured, given, served, tmp_path):
    """SIGKILL from outside while requests are in flight; what the endpoint was paid for is not asked for again."""
    server = served(rule())
    config = configured({"url": server.url, "concurrency": 2})
    code = (
        "import sys, json\nfrom pathlib import Path\n"
        "from components.feedback.feedback import Given, run\nfrom components.schema.feedback import FeedbackConfig\n"
        "config, policy, constitution, prompts, out = sys.argv[1:]\n"
        "run(FeedbackConfig.model_validate_json(config), Given(Path(policy), None, Path(constitution), Path(prompts)), Path(out))\n"
    )
    words = [config.model_dump_json(), *map(str, (given.policy, given.constitution, given.prompts, tmp_path / "out"))]
    killed = []

    def kill(body, number):
        if number == 22:  # one to see whether it answers, four a row: in the middle of the sixth
            os.kill(process.pid, signal.SIGKILL)
            killed.append(number)

    server.before = kill
    process = subprocess.Popen([sys.executable, "-c", code, *words])
    assert process.wait(120) == -signal.SIGKILL and killed
    done = len(read(tmp_path / "out/work/rows.jsonl"))
    assert 4 <= done <= 5  # the first batch was whole before the second began
    server.before = lambda body, number: None
    before = len(server.requests)
    run(config, replace(given, critic=None), tmp_path / "out")
    assert len(server.requests) - before == 1 + 4 * (10 - done)
    run(config, replace(given, critic=None), tmp_path / "whole")
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_an_endpoint_that_is_lost_keeps_what_was_done_and_says_so(configured, given, served, tmp_path):
    server = served(rule())
    server.before = lambda body, number: (503, "down", {"Retry-After": "0"}) if number > 13 else None
    with pytest.raises(
        BadInput, match=r"critic: http.*/v1/chat/completions answers 503 \(down\) after 2 attempts.*What was done is kept.*run the same command again"
    ):
        run(configured({"url": server.url, "concurrency": 2, "retries": 1}), replace(given, critic=None), tmp_path / "out")
    done = len(read(tmp_path / "out/work/rows.jsonl"))
    assert done >= 2 and not (tmp_path / "out/rows.jsonl").exists()
    server.before = lambda body, number: None
    assert run(configured({"url": server.url}), replace(given, critic=None), tmp_path / "out").figures["pairs"] == 10


def test_another_seed_draws_other_answers_and_other_principles(configured, given, tmp_path):
    for seed in (0, 1):
        run(configured(seed=seed), given, tmp_path / str(seed))
    first, other = (read(tmp_path / str(seed) / "rows.jsonl") for seed in (0, 1))
    assert [row["answer"] for row in first] != [row["answer"] for row in other]
    assert [row.get("by") for row in first] != [row.get("by") for row in other]


def test_bad_input_is_found_before_anything_is_answered(configured, given, tmp_path, monkeypatch):
    monkeypatch.setattr(LocalModel, "write", lambda *a: pytest.fail("a model was asked"))
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(BadInput, match=r"prompts: .*empty.jsonl is empty"):
        run(configured(), replace(given, prompts=tmp_path / "empty.jsonl"), tmp_path / "out")
    with pytest.raises(BadInput, match=r"constitution: .*gone.yaml cannot be read"):
        run(configured(), replace(given, constitution=tmp_path / "gone.yaml"), tmp_path / "out")
    with pytest.raises(BadInput, match=r"max_new_tokens=5000 leaves no room for a question in the 1024 tokens"):
        run(configured({"max_new_tokens": 5000}), given, tmp_path / "out")
    with pytest.raises(BadInput, match=r"cannot be reached \(.*refused.*\) after 1 attempts"):
        run(configured({"url": "http://127.0.0.1:9/v1", "retries": 0}), given, tmp_path / "out")
