"""The model card: what a person reads before using the model, and what a hub reads in its head (YAML, the hub's model-index).

    text(story("models:/modelyard@champion"), "models:/modelyard/3", ExportConfig(to="card"), None, None, "", None)

Made of the records alone (story.py): what was not recorded does not stand in it. Recorded words of people and models (a reason, a label) are cut to one line and
cannot become markup.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from components.evaluation.comparison import words
from components.evaluation.comparison.compare import Comparison
from components.export import using
from components.export.story import Score, Stage, Story
from components.schema.config import BadInput
from components.schema.export import ExportConfig
from components.schema.records import Record

# What each kind of stage is judged by: its figures before and after, and the unit.
MEASURES = {"pretrain": ("heldout_loss", "held-out loss, nats a token"), "sft": ("heldout_loss", "held-out loss, nats a token"), "ppo": ("reward", "reward"), "grpo": ("reward", "reward"), "dpo": ("accuracy", "pairs ranked right"), "best_of_n": ("reward", "reward")}
SCORER = ("accuracy", "pairs ranked right")
LIBRARIES = {"safetensors": "transformers", "int8": "transformers", "gguf": "gguf", "onnx": "onnx", "card": "transformers"}
LICENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,60}")
LONGEST_CELL = 300
WHOLE_TEXT = ("bits_per_byte", "perplexity")  # of a comparison's figures: those of all held-out text together


def text(told: Story | None, source: str, config: ExportConfig, record: Record | None, comparison: Comparison | None, unmeasured: str, licence: str | None) -> str:
    """The whole README.md. `told` None: a model of which nothing is recorded. Errors: BadInput for a licence that is no name of one."""
    if licence and not LICENCE.fullmatch(licence):
        raise BadInput(f"export: licence {licence!r} is no name of a licence, and hubs would refuse the card. Give its SPDX id, such as apache-2.0 or cc-by-4.0")
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=False, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["cell"] = cell
    title = f"{told.name} {told.version}" if told else Path(source).name
    body = environment.get_template("card.md").render(
        title=cell(title),
        told=told,
        source=source,
        export=_export(config, record, comparison, unmeasured) if record else None,
        use=using.text(config, title, bool(told and told.role != "base")),
        **(_of_story(told, licence) if told else {"table": [("licence", licence or "none stated")], "citation": ""}),
    )
    body = re.sub(r"\n{3,}", "\n\n", body).strip()
    return f"---\n{head(told, title, config, comparison, licence)}---\n\n{body}\n"


def head(told: Story | None, title: str, config: ExportConfig, comparison: Comparison | None, licence: str | None) -> str:
    """The hub's YAML. A form of other bits brings no scores that are not its own."""
    if comparison:
        own = [(row.name, row.metric, row.scores[1].score) for row in comparison.suites.values() if row.scores[1]]
    else:
        own = [(one.suite, one.metric, one.score) for one in told.scores] if told and config.to in ("safetensors", "card") else []
    results = [
        EvalResult(task_type="text-generation", dataset_type=suite, dataset_name=suite, metric_type=metric.partition(",")[0], metric_name=metric, metric_value=round(score, 6))
        for suite, metric, score in own
    ]
    data = ModelCardData(
        license=licence,
        library_name=LIBRARIES.get(config.to),
        pipeline_tag="text-generation",
        tags=["modelyard", config.to],
        **({"model_name": title, "eval_results": results} if results else {}),
    )
    return data.to_yaml() + "\n"


def cell(value: Any) -> str:
    """Recorded words as one line of a Markdown table that cannot become markup."""
    line = " ".join(words.visible(str(value)).split())
    line = line if len(line) <= LONGEST_CELL else f"{line[: LONGEST_CELL - 1]}…"
    return line.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("[", "\\[").replace("`", "\\`")


# ---------------------------------------------------------------- what the records say


def _of_story(told: Story, licence: str | None) -> dict[str, Any]:
    return {
        "facts": _facts(told),
        "table": list(_table(told, licence)),
        "asked": _asked(told),
        "other_figures": list(_other_figures(told)),
        "contamination": _contamination(told),
        "decision": _decision(told),
        "data": [(node.name, node.facts.get("md5") or node.facts.get("identity"), f"{node.facts['bytes']:,}" if node.facts.get("bytes") else "") for node in told.data],
        "contaminated": [_contaminated(score) for score in told.scores if score.contaminated.get("items")],
        "stages": [_stage(stage) for stage in told.stages],
        "totals": _totals(told),
        "code": _code(told),
        "seeds": ", ".join(dict.fromkeys(str(stage.facts["seed"]) for stage in told.stages if stage.facts["seed"] is not None)) or "not recorded",
        "limits": list(_limits(told)),
        "citation": _citation(told),
    }


def _first(told: Story) -> dict[str, Any]:
    """The section `model` of the recipe, as the first stage was given it."""
    return next((stage.record.config["model"] for stage in told.stages if stage.record.config.get("model")), {})


def _facts(told: Story) -> dict[str, Any]:
    parameters = [stage.record.figures["parameters"] for stage in told.stages if stage.record.figures.get("parameters")]
    return {"architecture": _first(told).get("architecture", "transformer"), "parameters": parameters[-1] if parameters else None}


def _table(told: Story, licence: str | None) -> Iterator[tuple[str, Any]]:
    model, facts = _first(told), _facts(told)
    yield "licence", licence or "none stated"
    yield "architecture", facts["architecture"]
    if facts["parameters"]:
        yield "parameters", f"{facts['parameters']:,}"
    for name, shown in (("layers", "layers"), ("hidden_size", "width"), ("heads", "heads"), ("context_tokens", "context, in tokens"), ("init_from", "began from the weights of")):
        if model.get(name):
            yield shown, model[name]
    seen = [stage.record.figures["tokens_seen"] for stage in told.stages if stage.record.figures.get("tokens_seen")]
    if seen:
        yield "tokens seen in pretraining", f"{seen[0]:,}"
    yield "recipe", f"{told.model.get('recipe') or 'not recorded'} ({told.model.get('recipe_hash') or 'no hash'})"
    yield "identity", told.model.get("identity") or "not recorded"


def _asked(told: Story) -> str:
    settings = told.evaluation.figures.get("settings", {}) if told.evaluation else {}
    template = settings.get("chat_template", {}).get(told.role)
    shots = settings.get("fewshot", {})
    said = ["through the chat template" if template else "as plain text" if template is not None else "", ", ".join(f"{suite}: {count} worked examples" for suite, count in shots.items() if count)]
    limit = settings.get("limit")
    return "; ".join(filter(None, [*said, f"at most {limit} items a task" if limit else ""])) or "settings as the suites define them"


def _other_figures(told: Story) -> Iterator[str]:
    if text := told.measured.get("perplexity"):
        parts = [f"{name.replace('_', ' ')} {value:.4g}" for name, value in text.items() if isinstance(value, int | float) and not name.endswith("stderr")]
        yield f"On held-out text: {', '.join(parts)}."
    for probe, found in (told.measured.get("probes") or {}).items():
        parts = [f"{name.replace('_', ' ')} {value:.4g}" for name, value in found.items() if isinstance(value, int | float) and not isinstance(value, bool)] if isinstance(found, dict) else []
        if parts:
            yield f"Probe {probe.replace('_', ' ')}: {', '.join(parts)}."


def _contamination(told: Story) -> str:
    looked = [score for score in told.scores if score.clean]
    if not looked:
        return "Whether items stand in the training text was not looked at."
    found, items = sum(score.contaminated.get("items", 0) for score in looked), sum(score.items for score in looked)
    return f"{found} of the {items:,} items stand in the training text, as far as the data line's search for shared word runs sees it."


def _contaminated(score: Score) -> tuple[Any, ...]:
    def shown(part: dict[str, Any]) -> str:
        return "–" if part.get("score") is None else f"{part['score']:.4f} ({part['items']} items)"

    return score.suite, score.contaminated["items"], shown(score.contaminated), shown(score.clean)


def _decision(told: Story) -> str:
    """What was decided about it, and by whom."""
    model = told.model
    said = f"{model.get('action', 'not decided')}: {cell(model.get('reason', 'no reason was recorded'))}"
    for word, done in (("settled", "Settled"), ("rolled_back", "Rolled back")):
        if who := model.get(f"{word}_by"):
            said += f". {done} by {cell(who)}: {cell(model.get(f'{word}_why') or 'no reason given')}"
    return said


def _stage(stage: Stage) -> tuple[str, ...]:
    name, unit = MEASURES.get(stage.name, SCORER)
    figures, bill = stage.record.figures, stage.record.execution.get("cost") or {}
    values = [f"{figures[key]:.4g}" if isinstance(figures.get(key), int | float) else "–" for key in (f"{name}_before", f"{name}_after")]
    return (stage.name, unit, *values, *(f"{bill[key]:.3g}" if bill.get(key) is not None else "–" for key in ("hours", "kwh", "amount")), str(bill.get("device", "not recorded")))


def _totals(told: Story) -> str:
    totals = told.totals
    parts = [f"{totals[name]:.3g} {unit}" for name, unit in (("hours", "hours"), ("kwh", "kWh"), ("amount", told.currency)) if name in totals]
    if not parts:
        return ""
    estimated = sum((stage.record.execution.get("cost") or {}).get("kwh_estimated") or 0.0 for stage in told.stages)
    share = min(1.0, estimated / totals["kwh"]) if totals.get("kwh") else 0.0
    how = f" {'All' if share == 1 else f'{share:.0%}'} of the energy is estimated from the time that the devices worked." if share else ""
    return f"In all: {', '.join(parts)}.{how}"


def _code(told: Story) -> str:
    commits = dict.fromkeys(f"`{stage.facts['git_commit'][:12]}`{' with uncommitted changes' if stage.facts['uncommitted_changes'] else ''}" for stage in told.stages if stage.facts.get("git_commit"))
    return f"commit {', '.join(commits)}" if commits else "its commit was not recorded"


def _limits(told: Story) -> Iterator[str]:
    """What follows from the records about where not to rely on it."""
    model, figures = _first(told), told.evaluation.figures if told.evaluation else {}
    if model.get("context_tokens"):
        yield f"It was trained on texts of at most {model['context_tokens']:,} tokens; what is longer was never seen."
    if not told.measured.get("probes"):
        yield "No safety, truthfulness, bias or robustness probe was recorded for it: nothing is known of how it answers harmful or leading prompts."
    if told.scores:
        yield f"It was measured on {', '.join(score.suite for score in told.scores)} and on nothing else; scores elsewhere may be lower."
        if few := [f"{score.suite} ({score.items})" for score in told.scores if score.items < 500]:
            yield f"Few items, so wide intervals: {', '.join(few)}."
    if cut := [f"{score.suite}: {score.truncated}" for score in told.scores if score.truncated]:
        yield f"Prompts that were too long for it and were cut: {', '.join(cut)}."
    unknown = told.licences.get("unknown", {}).get("documents", 0)
    if unknown:
        yield f"{unknown:,} of the texts collected name no licence."
    if suspicions := [f"{stage.name}: {', '.join(stage.record.figures['suspicions'])}" for stage in told.stages if stage.record.figures.get("suspicions")]:
        yield f"Training gave cause for doubt: {'; '.join(suspicions)}."
    if not told.scores and not figures:
        yield "It was never evaluated."


def _citation(told: Story) -> str:
    """BibTeX of what is known: name, version, date, identity."""
    date, key = str(told.model["registered"]), re.sub(r"[^A-Za-z0-9]+", "_", f"{told.name}_{told.version}").strip("_").lower()
    lines = [("title", f"{told.name}, version {told.version}"), ("year", date[:4]), ("month", str(int(date[5:7]))), ("note", f"Made with Modelyard; identity {told.model.get('identity') or 'not recorded'}")]
    return f"@misc{{{key},\n" + ",\n".join(f"  {name} = {{{value}}}" for name, value in lines) + "\n}"


# ---------------------------------------------------------------- the form


def _export(config: ExportConfig, record: Record, comparison: Comparison | None, unmeasured: str) -> dict[str, Any]:
    figures, timed = record.figures, record.execution.get("ms_per_token")
    rows: list[tuple[str, Any]] = [("bytes", f"{figures['bytes']:,} ({figures['bytes_before']:,} before)")]
    for key, by in (("check", ""), ("check_int8", ", graph of 8 bits"), ("check_llama_cpp", ", computed by llama.cpp")):
        if check := figures.get(key):
            rows += [(f"largest difference of a logit{by}", f"{check['logit_difference_max']:.3g} on {check['positions']:,} positions; mean KL {check['kl_mean']:.2g} nats; same likeliest token at {check['same_likeliest']:.1%}")]
    rows += [(shown, figures[key]) for key, shown in (("tokenizer", "tokenizer"), ("llama_cpp", "llama.cpp"), ("tensors", "tensors compared")) if key in figures]
    if timed:
        rows.append(("one answer alone, ms a token", f"{timed['exported']:.2f} ({timed['original']:.2f} before), on the machine that exported it"))
    return {"to": config.to, "what": using.WHAT[config.to].format(**config.model_dump()), "check": rows, "scores": list(_scores(comparison)) if comparison else [], "unmeasured": unmeasured.rstrip(".")}


def _scores(comparison: Comparison) -> Iterator[tuple[str, ...]]:
    for suite, row in comparison.suites.items():
        against = row.against[1]
        yield suite, words.score(row.scores[0]), words.score(row.scores[1]), words.difference(against), words.won_lost(against), against.verdict if against else "not comparable"
    for number in (one for one in comparison.figures.get("text", []) if one.name in WHOLE_TEXT):
        yield f"held-out {number.name.replace('_', ' ')}", words.number(number.values[0]), words.number(number.values[1]), words.change(*number.values), "–", "–"
