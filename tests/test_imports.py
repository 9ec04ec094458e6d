"""The import table of docs/ARCHITECTURE.md, held against the code: who may import whom, and what stays out of the door."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WATCHED = {"torch", "lightning", "transformers", "peft", "lm_eval", "mlflow", "prefect", "datasets", "dvc", "pydantic", "components", "flows", "dashboards"}

# Which of the watched packages a package may import, and which parts of ours.
MAY = {
    "components/schema": {"pydantic", "components.schema"},
    "components/data": {"components.schema", "components.data", "datasets", "dvc", "transformers"},
    "components/models": {"components.schema", "components.models", "torch", "transformers", "peft"},
    "components/training": {"components.schema", "components.models", "components.training", "torch", "lightning", "transformers"},
    "components/feedback": {"components.schema", "components.models", "components.feedback", "torch", "pydantic"},
    "components/evaluation": {"components.schema", "components.models", "components.evaluation", "torch", "lm_eval", "transformers", "datasets"},
    "components/registry": {"components.schema", "components.registry", "mlflow"},
    "components/serving": {"components.schema", "components.models", "components.registry", "components.serving", "components.data.versioning.stored", "components.data.filtering.pii", "torch", "transformers", "pydantic"},
    "components/export": {"components.schema", "components.models", "components.registry", "components.export", "components.evaluation.comparison", "components.evaluation.footprint", "components.evaluation.statistics", "torch", "transformers", "pydantic"},
    "components/cost": {"components.schema", "components.cost", "pydantic"},
    "components/storage": {"components.schema", "components.storage", "pydantic"},
    "components/launch.py": {"components.schema", "components.slots", "components.cost", "components.storage"},
    "components/slots.py": {"components.schema"},
    "dashboards": {"components.schema", "components.evaluation.statistics", "dashboards"},
    "flows": {"prefect", "components.schema", "components.launch", "components.slots", "components.cost", "components.storage", "components.registry", "components.serving.keys", "components.feedback.people", "components.feedback.prompts", "components.evaluation.comparison", *(f"components.evaluation.{name}" for name in ("evidence", "gate", "power", "statistics")), "components.export.card", "components.export.story", "flows"},
}


def files() -> list[Path]:
    return [p for top in ("components", "flows", "dashboards") for p in sorted((ROOT / top).rglob("*.py"))]


def rule_for(path: Path) -> set[str] | None:
    name = path.relative_to(ROOT).as_posix()
    return next((allowed for prefix, allowed in MAY.items() if name == prefix or name.startswith(prefix + "/")), None)


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)} if node.module in ("components", "flows", "dashboards") else {node.module}
    return names - {"components", "flows", "dashboards"}


@pytest.mark.parametrize("path", files(), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_a_module_imports_only_what_the_table_allows(path: Path) -> None:
    allowed = rule_for(path)
    if allowed is None:
        pytest.skip("the wiring (stages, __main__) may import any component")
    for name in imported(path):
        top = name.split(".")[0]
        if top in WATCHED:
            assert any(name == a or name.startswith(a + ".") for a in allowed), f"{path.relative_to(ROOT)} imports {name}"


def test_the_table_is_able_to_catch_a_violation(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("def f():\n    import prefect.flows\n    from components import training\n")
    assert {"prefect.flows", "components.training"} <= imported(bad)


@pytest.mark.parametrize("module", ["flows.cli", "components.launch", "components.stages", "components.schema.jobs"])
def test_the_door_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(sorted({{'torch', 'lightning', 'transformers', 'prefect', 'mlflow', 'datasets', 'lm_eval', 'dvc'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
