// The page about agreement, and the list of what one did last.

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
