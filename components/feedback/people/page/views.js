// What is shown beside questions: signing in, a word in the middle, agreement, and the list of what one did last.

export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.className = value;
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined)); // text stays text: nothing is read as HTML
  return element;
}

export function middle(title, ...lines) {
  return make("section", { class: "middle", role: "status" }, make("h1", {}, title), ...lines.map((line) => (line instanceof Node ? line : make("p", { class: "hint" }, line))));
}

// signIn(name, code) gives what is wrong, in words, or nothing.
export function signInView(codes, why, signIn) {
  const name = make("input", { id: "name", autocomplete: "username", required: true, maxlength: "60", autofocus: true });
  const code = make("input", { id: "code", autocomplete: "current-password", required: codes, autocapitalize: "none" });
  const wrong = make("p", { class: "wrong", role: "alert" }, why);
  const submit = async (event) => {
    event.preventDefault();
    wrong.textContent = (await signIn(name.value, code.value)) ?? "";
  };
  return make("form", { class: "middle card", onsubmit: submit },
    make("h1", {}, "Rank answers"), make("p", { class: "hint" }, codes ? "Sign in with the name and the code that you were given." : "Your name keeps your rankings together. Use the same one each time."),
    make("label", { for: "name" }, "Name"), name,
    ...(codes ? [make("label", { for: "code" }, "Code"), code] : []),
    wrong, make("button", { class: "main" }, "Begin"));
}

export function finishedView(done, look) {
  const text = done ? `You have ranked ${done} ${done === 1 ? "question" : "questions"}. Thank you. New ones appear here by themselves.` : "Others have the questions that are left. New ones appear here by themselves.";
  return middle(done ? "That is all for you" : "Nothing for you just now", text, make("button", { type: "button", onclick: look }, "How far do we agree?"));
}

const percent = (value) => (value === null ? "–" : `${Math.round(100 * value)} %`);
const number = (value) => (value === null ? "–" : value.toFixed(2));

export function agreementView(found) {
  const tiles = [
    ["Krippendorff's alpha", number(found.alpha), found.word],
    ["Rankings", found.rankings, `of ${found.items} questions, ${found.items_by_several} of them by more than one person`],
    ["People", found.annotators, ""],
    ["Right on known questions", percent(found.gold.accuracy), `${found.gold.rankings} rankings of questions with a known order`],
  ];
  return make("section", { class: "figures", "aria-labelledby": "agreement-title" },
    make("h1", { id: "agreement-title" }, "Agreement"),
    make("p", { class: "hint" }, "Alpha says how far people agree on which of two answers is better: 1 = always, 0 = as if by chance. From 0.80 on it counts as reliable."),
    make("div", { class: "tiles" }, ...tiles.map(([name, value, hint]) => make("div", { class: "tile" }, make("h2", {}, name), make("p", { class: "value" }, String(value)), make("p", { class: "hint" }, hint)))),
    make("h2", {}, "By question, the least agreement first"),
    table(["Question", "People", "Agree", "Alpha"], found.by_item.map((row) => [row.prompt.slice(0, 160), row.annotators, percent(row.agree), number(row.alpha)]), "No question was ranked by two people yet."),
    make("h2", {}, "By person"),
    table(["", "Rankings", "Agree with others", "Alpha without", "Known questions", "Right", "Seconds each"],
      found.by_annotator.map((row) => [row.annotator, row.rankings, percent(row.agree), number(row.alpha_without), row.gold, percent(row.gold_accuracy), Math.round(row.seconds)]), "Nobody has ranked anything yet."));
}

function table(head, rows, none) {
  if (!rows.length) return make("p", { class: "hint" }, none);
  return make("div", { class: "scrolled", tabindex: "0", role: "region", "aria-label": head[0] || "By person" }, make("table", {},
    make("thead", {}, make("tr", {}, ...head.map((cell) => make("th", { scope: "col" }, cell)))),
    make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map((cell, i) => make(i ? "td" : "th", i ? {} : { scope: "row" }, String(cell))))))));
}

export function lastView(rows, change) {
  return make("section", { class: "figures", "aria-labelledby": "last-title" },
    make("h1", { id: "last-title" }, "What you did last"),
    rows.length ? null : make("p", { class: "hint" }, "Nothing yet."),
    make("ul", { class: "last" }, ...rows.map((row) => make("li", {},
      make("div", {}, make("p", { class: "text" }, row.prompt.at(-1).content), make("p", { class: "hint" }, told(row))),
      make("button", { type: "button", onclick: () => change(row), "aria-label": `Change: ${row.prompt.at(-1).content.slice(0, 80)}` }, "Change")))));
}

function told(row) {
  if (row.kind === "skip") return "skipped";
  if (row.opinion.all_bad) return "all bad";
  const order = row.opinion.ranks.map((rank, i) => ({ rank, text: row.answers[i] })).sort((a, b) => a.rank - b.rank);
  return `best: ${order.filter((one) => one.rank === 1).map((one) => one.text.slice(0, 100)).join("  =  ")}`;
}
