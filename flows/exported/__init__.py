"""What the exporter asks of each server, as Prometheus metric families."""
