"""A playground: one model or two side by side, answers as they come, sampling, and the exact prompt that a model is given."""

from __future__ import annotations

import threading
from typing import Any

import streamlit as st
from streamlit.runtime.scriptrunner import add_script_run_ctx, get_script_run_ctx

from dashboards import look
from dashboards.services import serving

NONE = "no second model"
NOTHING = "No endpoint answers. `modelyard serve models:/modelyard@champion` starts one; MODELYARD_SERVING_URL names others, with commas between them."
HISTORY, SHOW = "chat.history", "chat.prompts"


def main() -> None:
    key = st.session_state.get("chat.key", "")
    found, problems = serving.models(key)
    for problem in problems:
        st.warning(problem, icon=":material/cloud_off:")
    if not found:
        look.empty(NOTHING if problems else "The endpoint answers, and no model is in service there yet: it waits for a version, or loads one. Look again in a moment.")
        with st.expander("A key for the endpoint"):
            st.text_input("API key", type="password", key="chat.key")
        return
    models = choose(found)
    system, sampling = controls()
    history: list[dict[str, Any]] = st.session_state.setdefault(HISTORY, [])
    for turn in history:
        one_turn(turn)
    if asked := st.chat_input("Write to the model"):
        turn = {"asked": asked, "answers": []}
        ask(models, turn, [messages(history, side, system, asked) for side in range(len(models))], sampling, key)
        history.append(turn)
        st.rerun()
    if history:
        below(history[-1], key)


def choose(found: list[serving.Model]) -> list[serving.Model]:
    """One model or two."""
    several = len({model.url for model in found}) > 1
    labels = {index: f"{model.name} at {model.url}" if several else model.name for index, model in enumerate(found)}
    left, right = st.columns(2)
    first = left.selectbox("Model", list(labels), format_func=labels.__getitem__)
    second = right.selectbox("Beside it", [None, *labels], format_func=lambda index: NONE if index is None else labels[index])
    return [found[first], *([found[second]] if second is not None else [])]


def controls() -> tuple[str, dict[str, Any]]:
    """The system's message and how answers are sampled."""
    with st.expander("Sampling and system message", icon=":material/tune:"):
        left, right = st.columns(2)
        temperature = left.slider("Temperature", 0.0, 2.0, 0.7, 0.05, help="0 takes the likeliest token every time.")
        top_p = left.slider("Top p", 0.05, 1.0, 1.0, 0.05, help="Samples among the likeliest tokens that together have this probability.")
        longest = right.number_input("Longest answer, in tokens", 1, 32_768, value=None, placeholder="what the endpoint allows")
        seed = right.number_input("Seed", 0, 2**31 - 1, value=None, help="The same seed, prompt and sampling give the same answer where the endpoint keeps to it.")
        system = st.text_area("System message", placeholder="none", height=80)
        st.text_input("API key", type="password", key="chat.key", help="Only where the endpoint asks for one. It stays in this page's memory.")
    chosen = {"temperature": temperature, "top_p": top_p, "max_tokens": longest, "seed": seed}
    return system.strip(), {name: value for name, value in chosen.items() if value is not None}


def messages(history: list[dict[str, Any]], side: int, system: str, asked: str) -> list[dict[str, str]]:
    """The conversation as one side has it, with what is asked now; a turn that this side did not answer is left out."""
    told = [{"role": "system", "content": system}] if system else []
    for turn in history:
        if side < len(turn["answers"]) and turn["answers"][side]["text"]:
            told += [{"role": "user", "content": turn["asked"]}, {"role": "assistant", "content": turn["answers"][side]["text"]}]
    return [*told, {"role": "user", "content": asked}]


def one_turn(turn: dict[str, Any]) -> None:
    """A question and its answers, side by side."""
    with st.chat_message("user"):
        look.words(turn["asked"])
    for column, answer in zip(st.columns(len(turn["answers"])), turn["answers"], strict=True):
        with column, st.chat_message("assistant"):
            st.caption(look.plain(answer["model"].name))
            look.words(answer["text"] or " ")
            if answer["error"]:
                st.error(look.plain(answer["error"]))


def ask(models: list[serving.Model], turn: dict[str, Any], told: list[list[dict[str, str]]], sampling: dict[str, Any], key: str) -> None:
    """Both are asked at once, and each writes into its own place as it answers."""
    with st.chat_message("user"):
        look.words(turn["asked"])
    asking = []
    for column, model, given in zip(st.columns(len(models)), models, told, strict=True):
        with column, st.chat_message("assistant"):
            st.caption(look.plain(model.name))
            place = st.empty()
        turn["answers"].append(answer := {"model": model, "given": given, "text": "", "error": ""})
        asking.append(threading.Thread(target=stream, args=(answer, sampling, key, place), daemon=True))
        add_script_run_ctx(asking[-1], get_script_run_ctx())
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()


def stream(answer: dict[str, Any], sampling: dict[str, Any], key: str, place: Any) -> None:
    """Fill `answer` and its place on the page, piece by piece."""
    try:
        for piece in serving.answer(answer["model"], answer["given"], sampling, key):
            answer["text"] += piece
            place.code(answer["text"], language=None, wrap_lines=True)
    except OSError as error:
        answer["error"] = str(error)


def below(turn: dict[str, Any], key: str) -> None:
    """Begin anew; the exact prompt of the last answers."""
    with st.container(horizontal=True):
        if st.button("New conversation", icon=":material/refresh:"):
            st.session_state[HISTORY] = []
            st.rerun()
        shown = st.toggle("Exact prompt", key=SHOW)
    if shown:
        for column, answer in zip(st.columns(len(turn["answers"])), turn["answers"], strict=True):
            with column, look.told():
                found = serving.prompt(answer["model"], answer["given"], key)
                st.caption(f"{look.plain(answer['model'].name)} was given {found['count']} tokens" + (f" of {found['max_model_len']}" if found["max_model_len"] else ""))
                look.words(found["prompt"] or "This endpoint counts tokens and does not tell the prompt.")


if __name__ == "__main__":
    main()
