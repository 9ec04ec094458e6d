"""A model's ancestry for people: a tree in the terminal, a picture as SVG.

    show(trace("models:/modelyard@champion"), console)
    Path("lineage.svg").write_text(picture(trace(...)))
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from components.registry.ancestry import Ancestry, Node

if TYPE_CHECKING:
    from rich.console import Console

WIDTH, HEIGHT, ACROSS, DOWN, MARGIN = 188, 44, 20, 26, 16  # of a box and of the space around it, in pixels
COLOURS = {"model": "#d7ecd9", "stage": "#dbe7f6", "data": "#f8ead0", "source": "#eee3f3", "weights": "#eee3f3", "missing": "#f6d5d3"}
SHORT = 10  # characters of a hash


# ---------------------------------------------------------------- terminal


def show(found: Ancestry, console: Console) -> None:
    """The tree; what was shown above is only named again."""
    from rich.text import Text
    from rich.tree import Tree

    seen: set[str] = set()

    def grow(tree: Tree, role: str, id: str) -> None:
        node = found.nodes[id]
        line = Text.assemble((f"{role}: " if role not in ("", node.name, node.name.partition("@")[0]) else "", "dim"), (node.name, "bold"), f"  {_told(node)}")
        if id in seen and node.inputs:
            line.append("  (as above)", "dim")
            tree.add(line)
            return
        seen.add(id)
        branch = tree.add(line) if role or id != found.root else tree
        for name, other in node.inputs.items():
            grow(branch, name, other)

    root = found.nodes[found.root]
    tree = Tree(Text.assemble((root.name, "bold green"), f"  {_told(root)}"))
    for name, other in root.inputs.items():
        grow(tree, name, other)
    console.print(tree, soft_wrap=True, highlight=False)
    for line in notes(found):
        console.print(line, style="yellow", highlight=False, soft_wrap=True)


def notes(found: Ancestry) -> list[str]:
    """What a person should know before trusting the tree."""
    stages = {id: node for id, node in found.nodes.items() if node.kind == "stage"}
    commits = sorted({node.facts["git_commit"] for node in stages.values() if node.facts.get("git_commit")})
    said = []
    if len(commits) > 1:
        said.append(f"Its stages were made by {len(commits)} commits: {', '.join(commit[:SHORT] for commit in commits)}.")
    if dirty := [node.name for node in stages.values() if node.facts.get("uncommitted_changes")]:
        said.append(f"Made with uncommitted changes, which are kept as a patch with the run: {', '.join(dirty)}.")
    if unknown := [node.name for node in stages.values() if not node.facts.get("git_commit")]:
        said.append(f"Made outside of a Git checkout, so the code is not known: {', '.join(unknown)}.")
    if missing := [f"{node.name} ({node.facts['identity'][:SHORT]})" for node in found.nodes.values() if node.kind == "missing"]:
        said.append(f"MLflow keeps no record of: {', '.join(missing)}.")
    return said


def _told(node: Node) -> str:
    """The facts that tell one node from another, in a line."""
    facts = node.facts
    match node.kind:
        case "model":
            parts = ["@" + ", @".join(facts["aliases"]) if facts["aliases"] else "", facts.get("action"), facts.get("recipe") and f"recipe {facts['recipe']}", facts["registered"]]
        case "stage":
            code = facts.get("git_commit") and facts["git_commit"][:SHORT] + ("+changes" if facts["uncommitted_changes"] else "")
            seed = facts["seed"] if facts["seed"] is not None else ""
            parts = [facts["identity"][:SHORT], code and f"code {code}", seed != "" and f"seed {seed}", _seconds(facts["work_seconds"]), facts["ended"], facts.get("init_from")]
        case "data":
            parts = [(facts.get("md5") or facts.get("identity", ""))[:SHORT], _size(facts.get("bytes")), facts.get("files") and f"{facts['files']} file{'' if facts['files'] == 1 else 's'}"]
        case "source":
            parts = [facts.get("pin", "")] if "pin" in facts else [", ".join(f"{name} {value}" for name, value in facts.items())]
        case _:
            parts = [facts.get("identity", "")[:SHORT], "not in MLflow" if node.kind == "missing" else ""]
    return "  ".join(str(part) for part in parts if part)


def _size(count: int | None) -> str:
    if count is None:
        return ""
    return next((f"{count / 1000**power:.1f} {unit}" for power, unit in ((3, "GB"), (2, "MB"), (1, "kB")) if count >= 1000**power), f"{count} B")


def _seconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 3600:.1f} h"


# ---------------------------------------------------------------- picture


def picture(found: Ancestry) -> str:
    """The graph as SVG: sources above, the model below, each node under all that it was made of."""
    rows = _rows(found)
    places = _places(found, rows)
    width, height = max(x for x, _ in places.values()) + WIDTH + MARGIN, MARGIN * 2 + len(rows) * (HEIGHT + DOWN) - DOWN
    lines = [_line(places[other], places[id]) for id, node in found.nodes.items() for other in dict.fromkeys(node.inputs.values())]
    boxes = [_box(found.nodes[id], *place) for id, place in places.items()]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" font-family="system-ui, sans-serif" font-size="12">'
    style = f'<title>Where {escape(found.nodes[found.root].name)} came from</title><rect width="100%" height="100%" fill="white"/>'
    return "\n".join([head, style, *lines, *boxes, "</svg>\n"])


def _places(found: Ancestry, rows: list[list[str]]) -> dict[str, tuple[int, int]]:
    """Where each box stands: its row, and in it a lane of its own, so that no line runs through the boxes that it passes."""
    depth = {id: at for at, row in enumerate(rows) for id in row}
    last = {id: max((depth[reader] for reader, node in found.nodes.items() if id in node.inputs.values()), default=depth[id]) for id in depth}
    lanes: list[int] = []  # by lane: the row until which something in it is still read
    places = {}
    for at, row in enumerate(rows):
        for id in row:
            above = [(depth[other], places[other][0]) for other in found.nodes[id].inputs.values()]
            wanted = [lane for lane, _ in sorted(((places_lane(x), -d) for d, x in above), key=lambda pair: pair[1])]
            free = [lane for lane in (*wanted, *range(len(lanes))) if lane < len(lanes) and lanes[lane] <= at]
            lane = free[0] if free else len(lanes)
            lanes += [0] * (lane + 1 - len(lanes))
            lanes[lane] = last[id]
            places[id] = (MARGIN + lane * (WIDTH + ACROSS), MARGIN + at * (HEIGHT + DOWN))
    return places


def places_lane(x: int) -> int:
    return (x - MARGIN) // (WIDTH + ACROSS)


def _rows(found: Ancestry) -> list[list[str]]:
    """Nodes by the longest way from a source, moved as far down as what is made of them allows."""
    depth: dict[str, int] = {}

    def depth_of(id: str) -> int:
        if id not in depth:
            depth[id] = 1 + max((depth_of(other) for other in found.nodes[id].inputs.values()), default=-1)
        return depth[id]

    for id in found.nodes:
        depth_of(id)
    readers: dict[str, list[str]] = {id: [] for id in found.nodes}
    for id, node in found.nodes.items():
        for other in node.inputs.values():
            readers[other].append(id)
    for id in sorted(found.nodes, key=lambda id: -depth[id]):
        if readers[id]:
            depth[id] = min(depth[reader] for reader in readers[id]) - 1
    return [[id for id in found.nodes if depth[id] == at] for at in range(max(depth.values()) + 1)]


def _line(start: tuple[int, int], end: tuple[int, int]) -> str:
    (x1, y1), (x2, y2) = (start[0] + WIDTH // 2, start[1] + HEIGHT), (end[0] + WIDTH // 2, end[1])
    straight = y2 - DOWN  # down its own lane, then across to the reader
    way = f"M{x1} {y1} L{x1} {straight} C{x1} {y2} {x2} {straight} {x2} {y2}"
    return f'<path d="{way}" fill="none" stroke="#6f7b8c" stroke-opacity=".8"/>'


def _box(node: Node, x: int, y: int) -> str:
    parts = [part for part in _told(node).split("  ") if part]
    second = _cut(" ".join(parts[: 1 if node.kind == "stage" else 2]), 25)
    tip = escape("\n".join(f"{name}: {_plain(value)}" for name, value in node.facts.items() if value not in (None, "", {}, [])))
    return (
        f'<g><title>{tip}</title><rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="6" fill="{COLOURS[node.kind]}" stroke="#5b6675"/>'
        f'<text x="{x + 9}" y="{y + 19}" font-weight="600">{escape(_cut(node.name, 26))}</text><text x="{x + 9}" y="{y + 36}" font-size="11" fill="#3c4653">{escape(second)}</text></g>'
    )


def _plain(value: Any) -> str:
    text = ", ".join(f"{name} {one:.5g}" if isinstance(one, float) else f"{name} {one}" for name, one in value.items()) if isinstance(value, dict) else str(value)
    return _cut(text, 600)


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"
