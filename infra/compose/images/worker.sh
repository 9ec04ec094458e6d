#!/bin/sh
# A worker machine in a container: its own clone of the image's commit in the volume /srv/modelyard, then `modelyard up` against servers elsewhere.
# The clone keeps data, results and DVC's cache from one start to the next; what was changed in it by hand is kept, and said.
set -eu

source=/usr/src/modelyard
project=${MODELYARD_PROJECT:?names the folder of the clone}
: "${PREFECT_API_URL:?names the Prefect server; this container starts none}"
: "${MLFLOW_TRACKING_URI:?names the MLflow server; this container starts none}"

if [ ! -d "$project/.git" ]; then
    git clone --quiet --no-hardlinks "$source/.git" "$project"
else
    wanted=$(git -C "$source" rev-parse HEAD)
    if [ "$(git -C "$project" rev-parse HEAD)" != "$wanted" ]; then
        git -C "$project" fetch --quiet "$source/.git" HEAD
        # params.yaml and dvc.lock are written by runs; the store has what they name.
        git -C "$project" checkout --quiet -- params.yaml dvc.lock || true
        git -C "$project" checkout --quiet "$wanted" || echo "worker: $project was changed by hand and stays at $(git -C "$project" rev-parse --short HEAD)" >&2
    fi
fi

cd "$project"
export PYTHONPATH="$project"
exec python -m flows.cli up --foreground
