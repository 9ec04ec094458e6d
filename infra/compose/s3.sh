#!/bin/sh
# SeaweedFS as one S3 server: one identity, from the environment; without it nobody gets in.
set -eu
: "${AWS_ACCESS_KEY_ID:?} ${AWS_SECRET_ACCESS_KEY:?}"
umask 077
cat >/tmp/s3.json <<END
{"identities": [{"name": "modelyard", "credentials": [{"accessKey": "${AWS_ACCESS_KEY_ID}", "secretKey": "${AWS_SECRET_ACCESS_KEY}"}], "actions": ["Admin", "Read", "Write", "List", "Tagging"]}]}
END
exec weed server -dir=/data -ip=s3 -ip.bind=0.0.0.0 -s3 -s3.port=8333 -s3.config=/tmp/s3.json -master.volumeSizeLimitMB=1024 -volume.max=0
