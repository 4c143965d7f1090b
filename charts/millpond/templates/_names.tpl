{{- /* Names, labels, images, addresses: what more than one object says. */ -}}

{{- define "millpond.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "millpond.fullname" -}}
{{- $name := include "millpond.name" . }}
{{- $made := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) }}
{{- .Values.fullnameOverride | default $made | replace "." "-" | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- /* Of a component: (list $ "worker"), and what it selects by. Never changed: selectors cannot be. */ -}}
{{- define "millpond.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "millpond.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "millpond.labels" -}}
{{- $root := index . 0 -}}
{{ include "millpond.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: millpond
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- end }}

{{- /* (list $ "worker" $values.image) */ -}}
{{- define "millpond.image" -}}
{{- $root := index . 0 }}
{{- $own := index . 2 }}
{{- $repository := $own.repository | default (printf "%s/%s" $root.Values.image.repository (index . 1)) }}
{{- $registry := $own.registry | default $root.Values.global.imageRegistry }}
{{- $tag := $own.tag | default $root.Values.image.tag | default $root.Chart.AppVersion }}
{{- with $registry }}{{ . }}/{{ end }}{{ $repository }}
{{- if $own.digest }}@{{ $own.digest }}{{ else }}:{{ $tag }}{{ end }}
{{- end }}

{{- /* Images of others: (list $ $values.image) */ -}}
{{- define "millpond.foreignImage" -}}
{{- $image := index . 1 }}
{{- with (index . 0).Values.global.imageRegistry }}{{ . }}/{{ end }}{{ $image.repository }}
{{- if $image.digest }}@{{ $image.digest }}{{ else }}:{{ $image.tag }}{{ end }}
{{- end }}

{{- /* "true" where KEDA asks the trial's nats-server what waits: its monitoring needs no password, and is off otherwise. */ -}}
{{- define "millpond.natsMonitored" -}}
{{- range include "millpond.pools" . | fromJsonArray }}
{{- if and (eq .autoscaling.type "keda") (not .autoscaling.keda.monitoringEndpoint) }}true{{ end }}
{{- end }}
{{- end }}

{{- define "millpond.authSecret" -}}
{{- .Values.auth.existingSecret | default (printf "%s-auth" (include "millpond.fullname" .)) }}
{{- end }}

{{- /* NATS's addresses for a user: (list $ "worker") */ -}}
{{- define "millpond.natsUrl" -}}
{{- $root := index . 0 }}
{{- $url := $root.Values.nats.url }}
{{- if $root.Values.nats.trial.enabled }}
{{- $url = printf "nats://%s-nats:4222" (include "millpond.fullname" $root) }}
{{- end }}
{{- regexReplaceAll "(nats|tls)://" $url (printf "${1}://%s@" (index . 1)) }}
{{- end }}

{{- define "millpond.otlpEndpoint" -}}
{{- if .Values.telemetry.otlpEndpoint }}{{ .Values.telemetry.otlpEndpoint }}
{{- else if .Values.otelCollector.enabled }}http://{{ include "millpond.fullname" . }}-otel-collector:4318{{ end }}
{{- end }}

{{- define "millpond.logstashUrl" -}}
{{- .Values.otelCollector.logstashUrl | default (printf "http://%s-logstash:4319" (include "millpond.fullname" .)) }}
{{- end }}

{{- /* Of Elasticsearch, for a program: (list $ $values); its passwords and certificates. */ -}}
{{- define "millpond.elasticsearchUrl" -}}
{{- (index . 1).elasticsearchUrl | default (printf "https://%s-elasticsearch:9200" (include "millpond.fullname" (index . 0))) }}
{{- end }}

{{- define "millpond.elkSecret" -}}
{{- (index . 1).elasticsearchSecret | default (printf "%s-elk" (include "millpond.fullname" (index . 0))) }}
{{- end }}

{{- define "millpond.urlPort" -}}
{{- $url := urlParse . }}
{{- if contains ":" $url.host }}{{ splitList ":" $url.host | last }}
{{- else if $url.host }}{{ ternary 443 80 (eq $url.scheme "https") }}{{ end }}
{{- end }}

{{- /* The pools of workers as a list in JSON, each with what `worker` says where it says nothing. */ -}}
{{- define "millpond.pools" -}}
{{- $pools := list }}
{{- range .Values.pools }}
{{- $pools = append $pools (mergeOverwrite (deepCopy $.Values.worker) (deepCopy .)) }}
{{- end }}
{{- toJson $pools }}
{{- end }}

{{- define "millpond.workerPriority" -}}
{{- printf "%s-%s-worker" .Release.Namespace (include "millpond.fullname" .) }}
{{- end }}

{{- define "millpond.poolName" -}}
{{- printf "%s-worker-%s" (include "millpond.fullname" (index . 0)) (index . 1) }}
{{- end }}
