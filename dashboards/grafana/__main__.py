"""Writes the boards beside this file: python -m dashboards.grafana"""

from __future__ import annotations

from pathlib import Path

from dashboards.grafana import drift, people, platform, serving, training
from dashboards.grafana.panels import Board, rendered

FOLDER = Path(__file__).parent
BOARDS: tuple[Board, ...] = (training.BOARD, platform.BOARD, serving.BOARD, drift.BOARD, people.BOARD)


def main() -> None:
    for board in BOARDS:
        path = FOLDER / f"{board.name}.json"
        path.write_text(rendered(board), encoding="utf-8")
        print(f"{path.name}: {len(board.panels)} panels, {sum(len(panel.queries) for panel in board.panels)} queries")


if __name__ == "__main__":
    main()
