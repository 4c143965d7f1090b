{{- /* What the pods of producer, worker, collector, setup and test have in common. They are given a dict: root, component,
values (of the component), secrets (key in the Secret of `auth` -> file), selector, and what is said where it is used. */ -}}

{{- define "millpond.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile: { type: RuntimeDefault }
{{- end }}

{{- define "millpond.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: { drop: [ALL] }
{{- end }}

{{- define "millpond.pullSecrets" -}}
{{- with .Values.global.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- /* Over zones and nodes, each version of the pods by itself: (list selector) */ -}}
{{- define "millpond.spread" -}}
{{- $selector := . }}
{{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
- topologyKey: {{ . }}
  maxSkew: 1
  whenUnsatisfiable: ScheduleAnyway
  matchLabelKeys: [pod-template-hash]
  labelSelector:
    matchLabels:
      {{- $selector | nindent 6 }}
{{- end }}
{{- end }}

{{- /* Where a pod may run, and as whom. */ -}}
{{- define "millpond.podPlace" -}}
serviceAccountName: {{ include "millpond.fullname" .root }}-{{ .component }}
automountServiceAccountToken: false
# Kubernetes would set MILLPOND_…_PORT of its own.
enableServiceLinks: false
securityContext:
  {{- include "millpond.podSecurity" . | nindent 2 }}
{{- include "millpond.pullSecrets" .root }}
{{- if .values.priorityClassName }}
priorityClassName: {{ .values.priorityClassName }}
{{- else if and (eq .component "worker") .root.Values.priorityClass.create }}
priorityClassName: {{ include "millpond.workerPriority" .root }}
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
  {{- if .values.topologySpreadConstraints }}
  {{- toYaml .values.topologySpreadConstraints | nindent 2 }}
  {{- else }}
  {{- include "millpond.spread" .selector | trim | nindent 2 }}
  {{- end }}
{{- end }}

{{- define "millpond.podVolumes" -}}
- name: auth
  secret:
    secretName: {{ include "millpond.authSecret" .root }}
    defaultMode: 0440
    items:
      {{- range $key, $path := .secrets }}
      - { key: {{ $key }}, path: {{ $path }} }
      {{- end }}
- name: tmp
  emptyDir: { sizeLimit: 64Mi }
{{- with .root.Values.nats.tls.existingSecret }}
- name: nats-tls
  secret: { secretName: {{ . }}, defaultMode: 0440 }
{{- end }}
{{- if and .http .root.Values.httpTls.existingSecret }}
- name: http-tls
  secret: { secretName: {{ .root.Values.httpTls.existingSecret }}, defaultMode: 0440 }
{{- end }}
{{- if and .signs .root.Values.signing.existingSecret }}
- name: signing
  secret: { secretName: {{ .root.Values.signing.existingSecret }}, defaultMode: 0440 }
{{- end }}
{{- with .values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "millpond.mounts" -}}
- { name: auth, mountPath: /run/millpond, readOnly: true }
- { name: tmp, mountPath: /tmp }
{{- if .root.Values.nats.tls.existingSecret }}
- { name: nats-tls, mountPath: /run/nats-tls, readOnly: true }
{{- end }}
{{- if and .http .root.Values.httpTls.existingSecret }}
- { name: http-tls, mountPath: /run/http-tls, readOnly: true }
{{- end }}
{{- if and .signs .root.Values.signing.existingSecret }}
- { name: signing, mountPath: /run/signing, readOnly: true }
{{- end }}
{{- with .values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- /* How to get to NATS, what is logged, where telemetry goes. */ -}}
{{- define "millpond.env" -}}
- { name: MILLPOND_NATS_PASSWORD_FILE, value: /run/millpond/nats_password }
# As long as the startup probe waits: NATS, and the Job that sets it up, may come later than this.
- { name: MILLPOND_CONNECT_TIMEOUT, value: 5m }
- { name: MILLPOND_LOG, value: {{ .root.Values.log.level | quote }} }
- { name: MILLPOND_LOG_JSON, value: {{ .root.Values.log.json | quote }} }
{{- if .root.Values.nats.tls.existingSecret }}
- { name: MILLPOND_TLS_CA, value: /run/nats-tls/ca.crt }
{{- if .root.Values.nats.tls.mutual }}
- { name: MILLPOND_TLS_CERT, value: /run/nats-tls/tls.crt }
- { name: MILLPOND_TLS_KEY, value: /run/nats-tls/tls.key }
{{- end }}
{{- end }}
{{- if and .http .root.Values.httpTls.existingSecret }}
- { name: MILLPOND_TLS_HTTP_CERT, value: /run/http-tls/tls.crt }
- { name: MILLPOND_TLS_HTTP_KEY, value: /run/http-tls/tls.key }
{{- end }}
{{- if and .signs .root.Values.signing.existingSecret }}
- { name: MILLPOND_SIGNING_KEY_FILE, value: /run/signing/keys }
{{- end }}
{{- with include "millpond.otlpEndpoint" .root }}
- { name: OTEL_EXPORTER_OTLP_ENDPOINT, value: {{ . | quote }} }
- { name: OTEL_METRICS_EXPORTER, value: {{ $.root.Values.telemetry.metricsExporter }} }
{{- end }}
{{- with .root.Values.telemetry.sampler }}
- { name: OTEL_TRACES_SAMPLER, value: {{ . | quote }} }
{{- end }}
{{- with .root.Values.telemetry.samplerArg }}
- { name: OTEL_TRACES_SAMPLER_ARG, value: {{ . | quote }} }
{{- end }}
{{- range $name, $path := dict "POD_NAME" "metadata.name" "POD_UID" "metadata.uid" "POD_NAMESPACE" "metadata.namespace" "NODE_NAME" "spec.nodeName" }}
- { name: {{ $name }}, valueFrom: { fieldRef: { fieldPath: {{ $path }} } } }
{{- end }}
{{- end }}

{{- /* More of a container: its image, its security, and what the values add. */ -}}
{{- define "millpond.container" -}}
image: {{ include "millpond.image" (list .root .component (.values.image | default dict)) }}
imagePullPolicy: {{ (.values.image | default dict).pullPolicy | default .root.Values.image.pullPolicy }}
securityContext:
  {{- include "millpond.containerSecurity" . | nindent 2 }}
resources:
  {{- toYaml .values.resources | nindent 2 }}
{{- with .values.extraArgs }}
args:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.extraEnvFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- /* Alive is whoever answers; ready, who is connected to NATS and not about to leave. Busy is ready: a busy worker that said
otherwise would be left out of the CPU that it uses, and be the first to go. */ -}}
{{- define "millpond.probes" -}}
{{- $scheme := ternary "HTTPS" "HTTP" (not (empty .root.Values.httpTls.existingSecret)) }}
startupProbe:
  httpGet: { path: /healthz, port: http, scheme: {{ $scheme }} }
  periodSeconds: 2
  # A little longer than MILLPOND_CONNECT_TIMEOUT: the program's own words come first.
  failureThreshold: 155
readinessProbe:
  httpGet: { path: /readyz, port: http, scheme: {{ $scheme }} }
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 2
livenessProbe:
  httpGet: { path: /healthz, port: http, scheme: {{ $scheme }} }
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
{{- end }}
