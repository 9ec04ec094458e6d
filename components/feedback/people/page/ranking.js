// The order of answers, best first, with ties; and the list that shows it, to be moved by dragging or by keys.

export const LETTERS = "ABCDEFGHI";
const SCROLL_EDGE = 70, SCROLL_STEP = 14; // pixels

export function place(number) {
  return `${number}${["th", "st", "nd", "rd"][number % 10 > 3 || Math.floor((number % 100) / 10) === 1 ? 0 : number % 10]}`;
}

// order: answers, best first; tied[i]: the i-th is as good as the one before it.
export class Order {
  constructor(count, ranks = null) {
    this.order = Array.from({ length: count }, (_, i) => i);
    this.tied = Array(count).fill(false);
    if (ranks) {
      this.order.sort((a, b) => ranks[a] - ranks[b] || a - b);
      this.tied = this.order.map((answer, i) => i > 0 && ranks[answer] === ranks[this.order[i - 1]]);
    }
  }

  get ranks() {
    const found = [];
    let rank = 0;
    this.order.forEach((answer, i) => { if (!this.tied[i]) rank += 1; found[answer] = rank; });
    return found;
  }

  move(answer, to) {
    const from = this.order.indexOf(answer);
    to = Math.max(0, Math.min(this.order.length - 1, to));
    if (from === to) return false;
    if (!this.tied[from] && from + 1 < this.order.length) this.tied[from + 1] = false; // who was tied with it alone is tied no more
    this.order.splice(from, 1);
    this.tied.splice(from, 1);
    const within = to < this.order.length && this.tied[to] && to > 0; // between two that are tied: it is tied with both
    this.order.splice(to, 0, answer);
    this.tied.splice(to, 0, within);
    this.tied[0] = false;
    return true;
  }

  tie(answer) {
    const at = this.order.indexOf(answer);
    if (at === 0) return false;
    this.tied[at] = !this.tied[at];
    return true;
  }
}

// Dragging by a handle, with a mouse, a pen or a finger. cards(): the list's cards in their order; moved(answer, place).
export function draggable(handle, card, cards, moved) {
  handle.addEventListener("pointerdown", (down) => {
    if (down.button !== 0) return;
    down.preventDefault();
    handle.setPointerCapture(down.pointerId);
    const startY = down.clientY + window.scrollY;
    let y = down.clientY, running = true;
    card.classList.add("dragged");
    const follow = () => {
      if (!running) return;
      if (y < SCROLL_EDGE) window.scrollBy(0, -SCROLL_STEP);
      if (y > window.innerHeight - SCROLL_EDGE) window.scrollBy(0, SCROLL_STEP);
      card.style.transform = `translateY(${y + window.scrollY - startY}px)`;
      const target = targetPlace(card, cards());
      cards().forEach((other, i) => other.classList.toggle("target", other !== card && i === target));
      requestAnimationFrame(follow);
    };
    const move = (event) => { y = event.clientY; };
    const end = (event) => {
      running = false;
      const target = targetPlace(card, cards());
      card.classList.remove("dragged");
      card.style.transform = "";
      cards().forEach((other) => other.classList.remove("target"));
      for (const [name, listener] of [["pointermove", move], ["pointerup", end], ["pointercancel", end]]) handle.removeEventListener(name, listener);
      if (event.type === "pointerup") moved(target);
    };
    for (const [name, listener] of [["pointermove", move], ["pointerup", end], ["pointercancel", end]]) handle.addEventListener(name, listener);
    follow();
  });
}

// Where a card that is being dragged would go: behind every card of which it has passed the middle.
function targetPlace(card, all) {
  const mine = card.getBoundingClientRect(), from = all.indexOf(card);
  let to = from;
  all.forEach((other, i) => {
    if (other === card) return;
    const { top, height } = other.getBoundingClientRect(), middle = top + height / 2;
    if (i < from && mine.top < middle) to = Math.min(to, i);
    if (i > from && mine.bottom > middle) to = Math.max(to, i);
  });
  return to;
}

// Cards slide from where they were to where they are now.
export function slide(cards, rearrange) {
  const before = new Map(cards.map((card) => [card, card.getBoundingClientRect().top]));
  rearrange();
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) return;
  for (const card of cards) {
    const far = before.get(card) - card.getBoundingClientRect().top;
    if (far) card.animate([{ transform: `translateY(${far}px)` }, { transform: "none" }], { duration: 160, easing: "ease-out" });
  }
}
