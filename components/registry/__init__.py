"""What happened, kept in MLflow: runs with their lineage, and released models. mlflow is imported only when it is used."""
