"""Boards for Grafana: what is on them is said in Python, checked by Grafana's own types, and written as the JSON files beside this one.

    python -m dashboards.grafana            # writes training.json, platform.json, serving.json, drift.json, people.json
"""
