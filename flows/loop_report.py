"""What the loop of human feedback did: the table in the terminal, report.md, report.json and a picture.

    write(figures, Path(".modelyard/loop"))      # figures: what flows/loop.py's `run` gives
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

COLOURS = ("#888888", "#4477aa", "#228833")  # of Paul Tol's bright scheme
SHOWN_CHARACTERS = 160
LENGTH = "characters an answer"  # what PPO changes by the way, whatever the rule is


def write(figures: dict[str, Any], out: Path) -> None:
    """report.json, report.md and loop.png."""
    (out / "report.json").write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (out / "report.md").write_text(markdown(figures), encoding="utf-8")
    picture(figures, out / "loop.png")


def rows(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """What was measured, in words and numbers."""
    rankings, exported, scorer, answers, rule = (figures[name] for name in ("rankings", "export", "reward_model", "answers", "rule"))
    made = f"{rankings['kept']} ({rankings['questions']} questions, {rankings['overlap']} of {figures['annotators']} people for each)"
    found = [
        ("rankings that arrived", made),
        ("people agree with each other (Krippendorff's alpha)", _number(rankings["alpha"])),
        ("pairs exported; in the rule's order", f"{exported['pairs']}; {exported['right']:.1%}"),
        ("reward model agrees with the rule, before", _spread(scorer["before"], share=True)),
        ("reward model agrees with the rule, retrained", _spread(scorer["after"], share=True)),
        (f"{rule['unit']}: chat model", _spread(answers["chat"])),
        (f"{rule['unit']}: policy of the old reward model", _spread(answers["policy"])),
        (f"{rule['unit']}: policy of the retrained one", _spread(answers["looped"])),
        ("moved from the chat model by", _spread(answers["moved"], sign="+")),
    ]
    align, long = figures["align"], figures["characters"]
    if rule["unit"] != LENGTH:
        found.append((f"{LENGTH}: chat model, old policy, new policy", ", ".join(f"{long[name]:.0f}" for name in ("chat", "policy", "looped"))))
    return found + [("KL from the chat model, nats an answer", f"{align['kl']:.2f} ± {align['kl_stderr']:.2f}")] * ("kl_stderr" in align)


def markdown(figures: dict[str, Any]) -> str:
    """The report: the rule, the table, the picture, answers before and after, seconds."""
    rule, scorer, answers = figures["rule"], figures["reward_model"], figures["answers"]
    return "\n".join(
        [
            f"# The loop of human feedback, closed with {figures['recipe']}",
            "",
            f"Simulated people ranked on the real page in Chromium: {rule['says']}. With chance {figures['noise']:g} one takes an answer for another of the same question. Seed {figures['seed']}.",
            f"Measured on {answers['prompts']} prompts that nobody ranked, {answers['answers_each']} sampled answers each ({scorer['pairs']} pairs that the rule tells apart, of {scorer['prompts']} prompts); 95 % intervals over prompts.",
            "",
            *_table(("measure", "value"), rows(figures)),
            "",
            "![Before and after](loop.png)",
            "",
            "## Answers to the same prompts",
            *_table(("prompt", "chat model", "policy of the old reward model", "policy of the retrained one"), [tuple(_short(one[name]) for name in ("prompt", "chat", "policy", "looped")) for one in figures["samples"]]),
            "",
            "## What it was made of",
            *_table(("part", "value"), [*figures["models"].items(), *((f"retrained {name}", folder) for name, folder in figures["trained"].items()), *((f"seconds: {name}", f"{value:.0f}") for name, value in figures["seconds"].items())]),
            "",
        ]
    )


def picture(figures: dict[str, Any], path: Path) -> None:
    """Two sets of bars with their intervals: whom the reward model agrees with, and what the models answer."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    scorer, answers, rule = figures["reward_model"], figures["answers"], figures["rule"]
    plot, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained", width_ratios=(2, 3))
    _bars(left, [scorer["before"], scorer["after"]], ["before", "retrained"], (COLOURS[1], COLOURS[2]), "{:.0%}")
    left.axhline(0.5, color="black", linewidth=0.8, linestyle=":")
    left.set(title="Reward model agrees with the rule", ylabel="share of pairs, unseen prompts", ylim=(0, 1.1))
    _bars(right, [answers[name] for name in ("chat", "policy", "looped")], ["chat model", "policy of the\nold reward model", "policy of the\nretrained one"], COLOURS, "{:.2f}")
    right.set(title="What the models answer", ylabel=rule["unit"])
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    plot.suptitle(f"Rule: {rule['says']}", fontsize=10)
    plot.savefig(path, dpi=110)
    pyplot.close(plot)


def _bars(axes: Any, values: Sequence[dict[str, float]], labels: Sequence[str], colours: Sequence[str], form: str) -> None:
    """Bars with 95 % intervals, each with its number above."""
    means = [value["mean"] for value in values]
    reach = [[value["mean"] - value["low"] for value in values], [value["high"] - value["mean"] for value in values]]
    axes.bar(labels, means, color=colours, yerr=reach, capsize=4, width=0.6)
    for place, value in enumerate(values):
        axes.annotate(form.format(value["mean"]), (place, value["high"]), xytext=(0, 3), textcoords="offset points", ha="center")
    axes.margins(y=0.15)


def _table(head: Sequence[str], lines: Sequence[Sequence[Any]]) -> list[str]:
    return [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(f"| {' | '.join(map(str, line))} |" for line in lines)]


def _spread(value: dict[str, float], share: bool = False, sign: str = "") -> str:
    """A mean with its interval."""
    form = f"{sign}.1%" if share else f"{sign}.2f"
    return f"{value['mean']:{form}} ({value['low']:{form}} to {value['high']:{form}})"


def _number(value: float | None) -> str:
    return "not known" if value is None else f"{value:.3f}"


def _short(text: str) -> str:
    """A text for a cell of a table: one line, no column of its own."""
    flat = text.replace("\n", " / ").replace("|", "\\|")
    return flat if len(flat) <= SHOWN_CHARACTERS else f"{flat[: SHOWN_CHARACTERS - 1]}…"
