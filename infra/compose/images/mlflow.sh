#!/bin/sh
# MLflow with accounts. Secrets come by environment: a command line is seen by everybody on the host.
set -eu

: "${MLFLOW_BACKEND_STORE_URI:?where runs are kept}"
: "${MLFLOW_ARTIFACTS_DESTINATION:?where artifacts are kept}"
: "${MLFLOW_ACCOUNTS_URI:?the database of accounts}"
: "${MLFLOW_AUTH_ADMIN_USERNAME:?} ${MLFLOW_AUTH_ADMIN_PASSWORD:?} ${MLFLOW_FLASK_SERVER_SECRET_KEY:?}"

umask 077
cat >/tmp/accounts.ini <<END
[mlflow]
default_permission = READ
database_uri = ${MLFLOW_ACCOUNTS_URI}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
END
export MLFLOW_AUTH_CONFIG_PATH=/tmp/accounts.ini MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false
exec python -m mlflow server --host 0.0.0.0 --port 5000 --workers "${MLFLOW_WORKERS:-2}" --app-name basic-auth "$@"
