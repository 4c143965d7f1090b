#!/usr/bin/env bash
# Pins foreign images to the digests that their tags have today, and renews digests that are there: the bases of the
# Dockerfile (ARG …_IMAGE=) and the images that the compose files run beside ours. A tag stays where it is, so that a reader
# sees which version a digest is. Needs docker with buildx, and the registries.
#
#   deploy/pin-images.sh             writes the digests
#   deploy/pin-images.sh --check     ends with 1 where a digest is missing or no longer the tag's
#   deploy/pin-images.sh … FILE…     these files instead
set -euo pipefail
check=
[ "${1:-}" != --check ] || { check=yes; shift; }
if [ $# = 0 ]; then
    cd "$(dirname "$0")/.."
    set -- Dockerfile docker-compose.yml docker-compose.ha.yml
fi

# `NAME:TAG` or `NAME:TAG@DIGEST` of each foreign image in a file. Ours have a version that is a variable.
images() { sed -nE 's/^(ARG [A-Z]+_IMAGE=|[[:space:]]*image: )([^${}[:space:]]+)$/\2/p' "$1" | sort -u; }

stale=0
for file; do
    for image in $(images "$file"); do
        tag=${image%@*}
        # The first digest of the manifest is its own; those of an index's platforms come after it.
        digest=$(docker buildx imagetools inspect "$tag" --format '{{json .Manifest}}' | grep -oE 'sha256:[0-9a-f]{64}' | head -n 1) || {
            echo "pin-images.sh: the registry of $tag does not answer, or does not have it" >&2
            exit 1
        }
        [ "$image" != "$tag@$digest" ] || continue
        stale=$((stale + 1))
        echo "$file: $tag is $digest"
        [ -n "$check" ] || sed -i -E "s#^(ARG [A-Z]+_IMAGE=|[[:space:]]*image: )$image\$#\1$tag@$digest#" "$file"
    done
done
if [ -n "$check" ] && [ "$stale" != 0 ]; then
    echo "pin-images.sh: $stale images are not pinned to what their tags are today: deploy/pin-images.sh" >&2
    exit 1
fi
