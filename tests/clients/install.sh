#!/usr/bin/env bash
# The official NATS libraries in pinned versions, and the programs that use them (examples/clients, tests/clients), into a folder.
# What is there already is left.
#
#   tests/clients/install.sh FOLDER LANGUAGE…     python javascript go java shell
set -euo pipefail
mkdir -p "$1"
into=$(cd "$1" && pwd)
shift
cd "$(dirname "$0")/../.."
examples=$PWD/examples/clients
tables=$PWD/tests/clients

# Whether what a file names is installed in this folder.
is_there() { cmp -s "$1" "$2/installed"; }

python() {
    local wanted=$examples/python/requirements.txt
    is_there "$wanted" "$into/python" && return
    python3 -m venv --clear "$into/python"
    "$into/python/bin/pip" install --quiet --disable-pip-version-check -r "$wanted"
    cp "$wanted" "$into/python/installed"
}
javascript() {
    local wanted=$examples/javascript/package.json
    mkdir -p "$into/javascript"
    # A program finds its packages beside itself.
    cp "$examples"/javascript/* "$tables"/javascript/* "$into/javascript"
    is_there "$wanted" "$into/javascript" && return
    npm install --prefix "$into/javascript" --silent --no-audit --no-fund --no-package-lock
    cp "$wanted" "$into/javascript/installed"
}
go_() {
    mkdir -p "$into/go"
    (cd "$examples/go" && go build -o "$into/go/examples" .)
    (cd "$tables/go" && go build -o "$into/go/table" .)
}
java_() {
    local wanted=$examples/java/pom.xml
    mkdir -p "$into/java"
    if ! is_there "$wanted" "$into/java"; then
        mvn --quiet --batch-mode --file "$wanted" dependency:copy-dependencies -DoutputDirectory="$into/java/lib"
        cp "$wanted" "$into/java/installed"
    fi
    javac -cp "$into/java/lib/*" -d "$into/java/classes" "$examples"/java/*.java "$tables"/java/*.java
}
# The `nats` program.
shell() { [ -x "$into/shell/nats" ] || GOBIN="$into/shell" go install github.com/nats-io/natscli/nats@v0.5.1; }

for language in "$@"; do
    case $language in
    python | javascript | shell) "$language" ;;
    go | java) "${language}_" ;;
    *)
        echo "no such language: $language" >&2
        exit 2
        ;;
    esac
done
