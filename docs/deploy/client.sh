#!/bin/sh
# Classify images over HTTP: sh client.sh http://127.0.0.1:8000 IMAGE... (the key, if any, in VITRAIL_API_KEY).
# All images go in one request; curl waits and tries again where the server is full.
set -eu
server=$1
shift
for image; do
  shift
  set -- "$@" -F "files=@$image"
done
curl --silent --show-error --fail-with-body --retry 5 --max-time 60 ${VITRAIL_API_KEY:+--oauth2-bearer "$VITRAIL_API_KEY"} \
  "$@" "$server/predict"
