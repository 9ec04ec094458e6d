// One answer as a card: what stands on it, and how it is brought up to date.

import { stored } from "./outbox.js";
import { LETTERS, draggable, place } from "./ranking.js";
import { make } from "./views.js";

const OPEN = "modelyard/ratings-open";
export const ratingsOpen = { get: () => Boolean(stored.get(OPEN)), set: (open) => stored.set(OPEN, open) }; // for all answers, and remembered

// acts: what its buttons do, each wrapped by `of`, which makes this answer the current one first.
export function card(text, answer, { flags, qualities }, inOrder, of, acts, entered) {
  const letter = LETTERS[answer];
  const handle = make("button", { type: "button", class: "handle", tabindex: "-1", "aria-hidden": "true", title: "Drag" }, "⠿");
  const tool = (name, label, said, run, key) => make("button", { type: "button", class: `small ${name}`, "aria-label": `${said} answer ${letter}`, onclick: of(run) }, label, key ? make("kbd", { "aria-hidden": "true" }, key) : null);
  const element = make("li", { class: "card", tabindex: "0", id: `answer-${answer}`, onfocusin: entered },
    make("button", { type: "button", class: "tie", onclick: of(() => acts.tie()) }),
    make("div", { class: "head" }, handle, make("span", { class: "place" }), make("span", { class: "letter" }, make("span", { class: "word" }, "Answer "), letter), make("span", { class: "badges" }),
      make("span", { class: "tools" },
        tool("up", "↑", "Move up", () => acts.moveBy(-1)), tool("down", "↓", "Move down", () => acts.moveBy(1)),
        tool("flag", "Flag", "Flag", () => acts.toggleFlags(answer), "f"), tool("rate", "Rate", "Rate", () => acts.toggleRatings(answer), "r"), tool("edit", "Edit", "Edit", () => acts.startEdit(answer), "e"))),
    make("p", { class: "text answer" }, text),
    make("div", { class: "flags", role: "group", "aria-label": `Why answer ${letter} is not safe`, hidden: true },
      ...flags.map((flag) => make("button", { type: "button", class: "chip", "data-flag": flag, onclick: of(() => acts.toggleFlag(answer, flag)) }, flag))),
    make("div", { class: "ratings", hidden: true }, ...qualities.map((quality) => make("div", { class: "rating", role: "group", "aria-label": `How ${quality} answer ${letter} is, 1 to 5` }, make("span", {}, quality),
      ...[1, 2, 3, 4, 5].map((value) => make("button", { type: "button", class: "chip", "data-quality": quality, "data-value": value, "aria-label": `${quality} ${value} of 5`, onclick: of(() => acts.rate(answer, quality, value)) }, String(value)))))));
  draggable(handle, element, inOrder, of((to) => acts.moveTo(to)));
  return element;
}

// The card of the answer that stands at place i, as the order and the draft are now.
export function drawn(element, { order, tied, ranks }, i, draft, current) {
  const answer = order[i], letter = LETTERS[answer], rank = ranks[answer], alike = ranks.filter((one) => one === rank).length > 1;
  element.setAttribute("aria-label", `Answer ${letter}, ${place(rank)} of ${Math.max(...ranks)}${alike ? ", tied" : ""}`);
  element.querySelector(".place").textContent = alike ? `= ${place(rank)}` : place(rank);
  element.classList.toggle("at", current);
  const chip = element.querySelector(".tie");
  chip.hidden = i === 0;
  chip.textContent = tied[i] ? "=" : "better than";
  chip.setAttribute("aria-pressed", String(tied[i]));
  chip.setAttribute("aria-label", i ? `Answer ${letter} is as good as answer ${LETTERS[order[i - 1]]}` : "");
  element.querySelector(".badges").replaceChildren(...draft.flags[answer].map((flag) => make("span", { class: "badge" }, flag)));
  for (const one of element.querySelectorAll("[data-flag]")) one.setAttribute("aria-pressed", String(draft.flags[answer].includes(one.dataset.flag)));
  for (const one of element.querySelectorAll("[data-value]")) one.setAttribute("aria-pressed", String(draft.ratings[answer][one.dataset.quality] === Number(one.dataset.value)));
  element.querySelector(".ratings").hidden = !ratingsOpen.get();
}
