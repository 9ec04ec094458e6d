// The page where people rank: what is on the screen, and what keys and buttons do. Order and dragging: ranking.js. What is sent, and kept until it is: outbox.js.

import { Outbox, ask, newId, stored } from "./outbox.js";
import { LETTERS, Order, place, slide } from "./ranking.js";
import { card, drawn, ratingsOpen } from "./cards.js";
import { blank, draftOf, opinionOf } from "./drafts.js";
import { agreementView, finishedView, lastView, make, middle, signInView } from "./views.js";

const AHEAD = 3, LOOK_AGAIN_MS = 15000, MOST_SECONDS = 3600;
const $ = (id) => document.getElementById(id);
const SIGNED_OUT = "You are signed out. What you did is kept, and is sent when you are back in.";
const DATASET = "modelyard/dataset";
const state = { who: "", start: null, dataset: "", view: "rank", queue: [], current: null, draft: null, at: 0, since: 0, answered: new Set(), history: [], progress: null, sure: false, trouble: "", timer: 0 };
let outbox = null;
let cards = [];

// ------------------------------------------------------------------ beginning

async function begin() {
  try {
    state.start = await ask("api/start");
  } catch {
    show(middle("The server does not answer", "What you did is kept in this browser. This page tries again by itself."));
    return void setTimeout(begin, 3000);
  }
  state.who = state.start.name;
  if (!state.who) return signIn(outbox && !outbox.closed ? SIGNED_OUT : "");
  document.querySelector("header").hidden = false;
  outbox?.close();
  outbox = new Outbox(state.who, told);
  $("leave").replaceChildren(make("span", { class: "who" }, state.who), " · Sign out");
  const names = state.start.datasets.map((one) => one.name);
  if (!names.length) return show(middle("Nothing to rank yet", "Questions are made with the command", "modelyard feedback ask"));
  $("dataset").replaceChildren(...names.map((name) => make("option", { value: name }, name)));
  $("dataset").hidden = names.length < 2;
  const wanted = new URLSearchParams(location.search).get("dataset") || stored.get(DATASET);
  $("dataset").value = names.includes(wanted) ? wanted : names[0];
  outbox.flush();
  choose();
}

function choose() {
  Object.assign(state, { dataset: $("dataset").value, queue: [], current: null, draft: null, answered: new Set(), history: [], progress: null });
  stored.set(DATASET, state.dataset);
  const guide = state.start.datasets.find((one) => one.name === state.dataset).guide;
  $("guide").textContent = guide;
  $("guide").hidden = !guide;
  open("rank");
}

function signIn(why = "") {
  clearTimeout(state.timer);
  outbox?.close(); // what waits in it is sent when its owner is back
  document.querySelector("header").hidden = $("actions").hidden = true;
  show(signInView(state.start.codes, why, async (name, code) => {
    try {
      await ask("api/sign-in", { name, code });
      await begin();
    } catch (error) {
      return error.status === 401 ? "There is no such name and code." : error.status ? error.message : "The server does not answer. Try again in a moment.";
    }
  }));
  $("name").focus();
}

// ------------------------------------------------------------------ views

async function open(view) {
  seen(view);
  clearTimeout(state.timer);
  $("actions").hidden = true;
  try {
    if (view === "agreement") show(agreementView(await ask(`api/agreement?dataset=${state.dataset}`)));
    else if (view === "mine") show(lastView(await ask(`api/mine?dataset=${state.dataset}`), (row) => takeBack(row, row)));
    else return await go();
    $("main").focus({ preventScroll: true });
    window.scrollTo(0, 0);
  } catch (error) {
    if (error.status === 401) return begin();
    show(middle("Not to be had just now", error.status ? error.message : "The server does not answer. What you did is kept in this browser."));
  }
}

function seen(view) {
  state.view = view;
  for (const name of ["rank", "mine", "agreement"]) name === view ? $(`to-${name}`).setAttribute("aria-current", "page") : $(`to-${name}`).removeAttribute("aria-current");
}

function show(...content) {
  $("main").replaceChildren(...content);
}

// ------------------------------------------------------------------ questions

async function go() {
  clearTimeout(state.timer);
  if (state.view !== "rank") return;
  if (!state.current && state.queue.length) begun(state.queue.shift());
  if (state.queue.length >= AHEAD - 1 && state.current) return;
  if (!state.current) show(middle("One moment…"));
  let trouble = "";
  try {
    await outbox.flush(); // so that what the server tells counts what was just done
    if (outbox.waiting.length) throw new Error("the server does not take it yet");
    const dataset = state.dataset, found = await ask("api/next", { dataset, ahead: AHEAD });
    if (dataset !== state.dataset) return;
    state.progress = found.progress;
    const busy = new Set([state.current?.id, ...state.queue.map((one) => one.id), ...state.answered, ...outbox.waiting.map((one) => one.sent.item)]);
    state.queue.push(...found.items.filter((one) => !busy.has(one.id)));
  } catch (error) {
    if (error.status === 401) return signIn(SIGNED_OUT);
    trouble = error.status ? error.message : "The server does not answer. What you did is kept in this browser, and is sent when it is back.";
  }
  showFar();
  if (state.view !== "rank") return;
  if (!state.current && state.queue.length) return begun(state.queue.shift());
  if (!state.current) {
    show(trouble ? middle("Not to be had just now", trouble) : finishedView(state.progress?.done ?? 0, () => open("agreement")));
    $("actions").hidden = true;
    state.timer = setTimeout(go, trouble ? 3000 : LOOK_AGAIN_MS);
  }
}

const draftKey = (item) => `modelyard/draft/${state.who}/${state.dataset}/${item.id}`;

function begun(item) {
  state.current = item;
  state.draft = { ...blank(item), ...stored.get(draftKey(item)) };
  state.order = new Order(item.answers.length, state.draft.ranks);
  state.at = state.order.order[0];
  state.since = Date.now();
  state.sure = false;
  draw();
  window.scrollTo(0, 0);
  focusCard();
  say(`Question: ${item.prompt.at(-1).content.slice(0, 300)}. ${item.answers.length} answers.`);
}

function changed() {
  state.draft.ranks = state.order.ranks;
  state.sure = false;
  stored.set(draftKey(state.current), { ...state.draft, seconds: seconds() });
  refresh();
}

function seconds() {
  return Math.min(MOST_SECONDS, state.draft.seconds + (Date.now() - state.since) / 1000);
}

// ------------------------------------------------------------------ drawing

function draw() {
  const item = state.current, draft = state.draft;
  cards = item.answers.map((text, answer) => card(text, answer, state.start, inOrder, (run) => (...given) => { at(answer); run(...given); }, ACTS, () => at(answer)));
  const turns = item.prompt.map((turn) => make("div", { class: `turn ${turn.role}` }, make("span", { class: "role" }, { user: "Asked", assistant: "Answered", system: "Told beforehand" }[turn.role] ?? turn.role), make("p", { class: "text" }, turn.content)));
  const edit = make("textarea", { id: "edit", rows: "3", maxlength: "20000", oninput: () => { draft.edit = edit.value; changed(); } });
  const note = make("textarea", { id: "note", rows: "1", maxlength: "2000", oninput: () => { draft.note = note.value; changed(); } });
  edit.value = draft.edit;
  note.value = draft.note;
  show(make("div", { class: "board" },
    make("section", { class: "question", "aria-label": "Question" }, ...turns),
    make("section", { class: "answers", "aria-label": "Answers, the best first" }, make("p", { id: "all-bad", class: "banner", hidden: true }, "All bad: no answer here will be learnt from."), make("ol", { id: "list" }, ...cards)),
    make("section", { class: "more", "aria-label": "In your own words" },
      make("label", { for: "edit" }, "A better answer ", make("span", { class: "hint" }, "becomes an example to learn from; E begins with the answer you are at")), edit,
      make("label", { for: "note" }, "Note"), note)));
  $("actions").hidden = false;
  refresh(false);
  showFar();
}

const inOrder = () => state.order.order.map((answer) => cards[answer]);

function refresh(sliding = true) {
  const { order } = state.order, draft = state.draft, list = $("list"), focused = document.activeElement;
  const arrange = () => { if (inOrder().some((one, i) => list.children[i] !== one)) list.append(...inOrder()); };
  if (sliding) slide(cards, arrange); else arrange();
  order.forEach((answer, i) => drawn(cards[answer], state.order, i, draft, answer === state.at));
  $("all-bad").hidden = !draft.all_bad;
  list.classList.toggle("bad", draft.all_bad);
  $("bad").setAttribute("aria-pressed", String(draft.all_bad));
  if (focused !== document.activeElement && document.contains(focused)) focused.focus({ preventScroll: true });
}

function showFar() {
  if (!state.progress) return;
  const { done, skipped, left } = state.progress, all = done + left;
  $("bar").max = all || 1;
  $("bar").value = done;
  $("far").textContent = all ? `${done} of ${all}` : "";
  $("far").title = skipped ? `${skipped} skipped` : "";
}

function told({ waiting, refused, safe, trouble }) {
  $("kept").textContent = waiting ? `${waiting} to send${trouble === "no answer" ? ", the server does not answer" : ""}` : "all kept";
  $("kept").classList.toggle("waits", waiting > 0);
  const problems = [...refused.map((one) => `The server refused one of yours: ${one.reason}`), ...(safe ? [] : ["This browser keeps nothing: leave the page open until all is sent."])];
  $("warning").hidden = !problems.length;
  $("warning").replaceChildren(problems[0] ?? "", ...(refused.length ? [make("button", { type: "button", class: "small", onclick: () => { stored.remove(refused[0].key); outbox.tell(); } }, "Read")] : []));
  if (trouble === "signed out" && state.view === "rank") begin();
}

// ------------------------------------------------------------------ what a person does

function say(text) {
  $("said").textContent = text;
}

function focusCard() {
  cards[state.at]?.focus({ preventScroll: true });
}

function where() {
  const rank = state.order.ranks[state.at];
  return `Answer ${LETTERS[state.at]} is ${place(rank)}`;
}

function at(answer) {
  state.at = answer;
  cards.forEach((one, i) => one.classList.toggle("at", i === answer));
}

function moveTo(to) {
  state.draft.moved = true;
  state.draft.all_bad = false;
  state.order.move(state.at, to);
  changed();
  focusCard();
  cards[state.at].scrollIntoView({ block: "nearest" });
  say(where());
}

function moveBy(step) {
  moveTo(state.order.order.indexOf(state.at) + step);
}

function walk(step) {
  const { order } = state.order;
  state.at = order[Math.max(0, Math.min(order.length - 1, order.indexOf(state.at) + step))];
  focusCard();
  cards[state.at].scrollIntoView({ block: "nearest" });
}

function tie() {
  if (!state.order.tie(state.at)) return say("This is the first one: there is none above");
  state.draft.moved = true;
  state.draft.all_bad = false;
  changed();
  say(`${where()}${state.order.tied[state.order.order.indexOf(state.at)] ? ", as good as the one above" : ""}`);
}

function allBad() {
  state.draft.all_bad = !state.draft.all_bad;
  changed();
  say(state.draft.all_bad ? "All bad" : "Not all bad");
}

function toggleFlags(answer) {
  const row = cards[answer].querySelector(".flags");
  row.hidden = !row.hidden;
  (row.hidden ? cards[answer] : row.firstElementChild).focus();
}

function toggleFlag(answer, flag) {
  const flags = state.draft.flags[answer];
  state.draft.flags[answer] = flags.includes(flag) ? flags.filter((one) => one !== flag) : [...flags, flag];
  changed();
}

function toggleRatings(answer) {
  ratingsOpen.set(!ratingsOpen.get());
  refresh(false);
  (ratingsOpen.get() ? cards[answer].querySelector("[data-value]") : cards[answer]).focus();
}

function rate(answer, quality, value) {
  const ratings = state.draft.ratings[answer];
  if (ratings[quality] === value) delete ratings[quality];
  else ratings[quality] = value;
  changed();
}

function startEdit(answer) {
  const begun = state.draft.from === null ? "" : state.current.answers[state.draft.from];
  if (state.draft.edit.trim() && state.draft.edit !== begun) say("What you wrote stays; empty it to begin with another answer");
  else Object.assign(state.draft, { edit: state.current.answers[answer], from: answer });
  $("edit").value = state.draft.edit;
  changed();
  $("edit").focus();
}

function next() {
  if (!state.current) return;
  if (!state.draft.moved && !state.draft.all_bad && !state.sure) {
    state.sure = true;
    return hint("Nothing was moved. Press Enter again if this order is right.");
  }
  send("ranking", opinionOf(state.draft, state.current, state.order.ranks, seconds()));
}

function send(kind, said) {
  const item = state.current;
  stored.remove(draftKey(item));
  state.history.push({ item, opinion: said });
  state.answered.add(item.id);
  state.current = null;
  if (state.progress) {
    state.progress.left -= 1;
    state.progress[kind === "skip" ? "skipped" : "done"] += 1;
  }
  outbox.add(state.dataset, { submission: newId(), item: item.id, kind, opinion: said });
  hint("");
  go();
}

async function undo() {
  const last = state.history.pop();
  if (last) return takeBack(last.item, last);
  try {
    const [row] = await ask(`api/mine?dataset=${state.dataset}`);
    if (row) takeBack(row, row);
    else hint("There is nothing to take back.");
  } catch {
    hint("The server does not answer, so nothing older can be taken back just now.");
  }
}

function takeBack(item, { opinion: said }) {
  if (state.current) state.queue.unshift(state.current);
  state.queue = state.queue.filter((one) => one.id !== item.id);
  state.answered.delete(item.id);
  outbox.add(state.dataset, { submission: newId(), item: item.id, kind: "undo", opinion: null });
  if (said) stored.set(draftKey(item), draftOf(item, said));
  if (state.progress) { state.progress.left += 1; state.progress[said ? "done" : "skipped"] -= 1; }
  seen("rank");
  begun({ id: item.id, prompt: item.prompt, answers: item.answers });
  hint("Taken back: look at it again.");
}

let hintTimer = 0;
function hint(text) {
  clearTimeout(hintTimer);
  document.querySelector(".toast")?.remove();
  if (!text) return;
  say(text);
  document.body.append(make("div", { class: "toast", "aria-hidden": "true" }, text));
  hintTimer = setTimeout(() => document.querySelector(".toast")?.remove(), 4000);
}

// ------------------------------------------------------------------ keys and buttons

const ACTS = { tie, moveTo, moveBy, toggleFlags, toggleRatings, startEdit, toggleFlag, rate };
const KEYS = { "=": tie, b: allBad, u: undo, s: () => send("skip", null), f: () => toggleFlags(state.at), r: () => toggleRatings(state.at), e: () => startEdit(state.at) };

document.addEventListener("keydown", (event) => {
  if ($("help").open || !state.who || event.isComposing) return;
  const writing = event.target.matches("input, textarea, select"), onButton = event.target.matches("button, a");
  if (event.key === "Escape" && writing) return focusCard();
  if (event.key === "Enter" && writing && (event.ctrlKey || event.metaKey)) return act(event, next);
  if (writing || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "?") return act(event, () => $("help").showModal());
  if (event.key.toLowerCase() === "u" && state.view === "rank") return act(event, undo);
  if (state.view !== "rank" || !state.current) return;
  if (event.key === "Enter" && !onButton && !event.repeat) return act(event, next);
  if (event.key === "ArrowUp" || event.key === "ArrowDown") return act(event, () => (event.shiftKey ? moveBy : walk)(event.key === "ArrowUp" ? -1 : 1));
  if (/^[1-9]$/.test(event.key)) return Number(event.key) <= state.current.answers.length ? act(event, () => moveTo(Number(event.key) - 1)) : undefined;
  const known = KEYS[event.key.toLowerCase()];
  if (known && !event.repeat) act(event, known);
});

function act(event, run) {
  event.preventDefault();
  run();
}

$("undo").addEventListener("click", undo);
$("skip").addEventListener("click", () => state.current && send("skip", null));
$("bad").addEventListener("click", allBad);
$("next").addEventListener("click", next);
$("help-button").addEventListener("click", () => $("help").showModal());
$("dataset").addEventListener("change", choose);
$("leave").addEventListener("click", async () => { await ask("api/sign-out", {}).catch(() => {}); outbox?.close(); begin(); });
for (const view of ["rank", "mine", "agreement"]) $(`to-${view}`).addEventListener("click", () => {
  if (view !== "rank" || !state.current) return open(view);
  seen(view);
  begun(state.current);
});
addEventListener("online", () => outbox?.flush());
addEventListener("beforeunload", (event) => { if (!stored.safe) event.preventDefault(); });

begin();
