#!/bin/sh
# Run once, by the postgres image, when its volume is empty: a role and a database for each server, so that neither can read the other's.
set -eu
: "${PREFECT_DB_PASSWORD:?} ${MLFLOW_DB_PASSWORD:?}"

for name in prefect mlflow ${FEEDBACK_DB_PASSWORD:+feedback}; do
    case $name in prefect) password=$PREFECT_DB_PASSWORD ;; mlflow) password=$MLFLOW_DB_PASSWORD ;; *) password=$FEEDBACK_DB_PASSWORD ;; esac
    psql -v ON_ERROR_STOP=1 -v name="$name" -v password="$password" --username "$POSTGRES_USER" --dbname postgres <<'SQL'
CREATE ROLE :"name" LOGIN PASSWORD :'password';
CREATE DATABASE :"name" OWNER :"name" ENCODING 'UTF8' TEMPLATE template0;
REVOKE ALL ON DATABASE :"name" FROM PUBLIC;
SQL
done
psql -v ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname postgres -c "CREATE DATABASE mlflow_accounts OWNER mlflow ENCODING 'UTF8' TEMPLATE template0"
psql -v ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname postgres -c "REVOKE ALL ON DATABASE mlflow_accounts FROM PUBLIC"
# Prefect's migrations use it; making an extension takes more rights than Prefect has.
psql -v ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname prefect -c "CREATE EXTENSION IF NOT EXISTS pg_trgm"
