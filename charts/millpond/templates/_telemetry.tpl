{{- /* What takes telemetry has more in common than all that is foreign: beside what _foreign.tpl wants, its dict has of Elasticsearch's
Secret keys (the passwords that it may know) and certs (what it needs beside ca.crt, and as Elasticsearch itself: key -> path). */ -}}

{{- /* dict: port, ready (how to ask; default: whether the port is open) */ -}}
{{- define "millpond.telemetryProbes" -}}
{{- $alive := dict "tcpSocket" (dict "port" .port) }}
{{- $ready := .ready | default $alive | toYaml }}
startupProbe:
  {{- $ready | nindent 2 }}
  periodSeconds: 5
  timeoutSeconds: 5
  # Ten minutes: Java is slow to start, and Kibana waits for the users that a Job makes.
  failureThreshold: 120
readinessProbe:
  {{- $ready | nindent 2 }}
  periodSeconds: 10
  timeoutSeconds: 5
livenessProbe:
  {{- toYaml $alive | nindent 2 }}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
{{- end }}

{{- /* Passwords and certificates, as files where deploy/ looks for them. */ -}}
{{- define "millpond.elkVolumes" -}}
{{- $secret := include "millpond.elkSecret" (list .root .values) }}
{{- $paths := dict "passwords" dict "certs" (dict "ca.crt" "ca/ca.crt") }}
{{- range .keys }}{{ $_ := set $paths.passwords . . }}{{ end }}
{{- $_ := merge $paths.certs (.certs | default dict) }}
{{- range $name, $items := $paths }}
- name: {{ $name }}
  secret:
    secretName: {{ $secret }}
    defaultMode: 0440
    items:
      {{- range $key, $path := $items }}
      - { key: {{ $key }}, path: {{ $path }} }
      {{- end }}
{{- end }}
- name: tmp
  emptyDir: { sizeLimit: 256Mi }
{{- end }}

{{- /* Elasticsearch reads certificates in its own folder only. */ -}}
{{- define "millpond.elkMounts" -}}
- { name: passwords, mountPath: /run/millpond, readOnly: true }
- { name: certs, mountPath: {{ ternary "/usr/share/elasticsearch/config/certs" "/run/certs" (hasKey . "certs") }}, readOnly: true }
- { name: tmp, mountPath: /tmp }
{{- end }}

{{- /* A Job of deploy/elasticsearch/setup.sh. dict: root, name, steps, keys */ -}}
{{- define "millpond.elkJob" }}
{{- $root := .root }}
{{- $pod := merge (dict "component" "elk-setup" "values" (dict "image" $root.Values.elasticsearch.image
  "resources" (dict "requests" (dict "cpu" "50m" "memory" "128Mi") "limits" (dict "memory" "128Mi")))) . }}
{{- $spec := include "millpond.elkJobSpec" $pod }}
apiVersion: batch/v1
kind: Job
metadata:
  # A Job cannot be changed: what would change it makes a new one.
  name: {{ include "millpond.fullname" $root }}-{{ .name }}-{{ printf "%s%s" $spec (include "millpond.elkFiles" $root) | sha256sum | trunc 8 }}
  labels:
    {{- include "millpond.labels" (list $root "elk-setup") | nindent 4 }}
spec:
  {{- $spec | nindent 2 }}
{{- end }}

{{- define "millpond.elkJobSpec" -}}
backoffLimit: 10
template:
  metadata:
    labels:
      {{- include "millpond.selector" (list .root .component) | nindent 6 }}
  spec:
    restartPolicy: OnFailure
    {{- include "millpond.foreignPod" . | nindent 4 }}
    containers:
      - name: setup
        {{- include "millpond.foreignContainer" . | nindent 8 }}
        command: [bash, /etc/elasticsearch/setup.sh]
        args:
          {{- toYaml .steps | nindent 10 }}
        env:
          - { name: ELASTICSEARCH_URL, value: {{ include "millpond.elasticsearchUrl" (list .root .values) | quote }} }
          - { name: KIBANA_URL, value: "http://{{ include "millpond.fullname" .root }}-kibana:5601" }
          - { name: OBJECTS, value: /etc/elasticsearch/objects.ndjson }
        volumeMounts:
          {{- include "millpond.elkMounts" . | nindent 10 }}
          - { name: config, mountPath: /etc/elasticsearch, readOnly: true }
    volumes:
      {{- include "millpond.elkVolumes" . | nindent 6 }}
      - name: config
        configMap:
          name: {{ include "millpond.fullname" .root }}-elk-setup
          items:
            - { key: setup.sh, path: setup.sh }
            - { key: objects.ndjson, path: objects.ndjson }
            {{- range $path, $_ := .root.Files.Glob "files/elasticsearch/templates/*" }}
            - { key: {{ base $path }}, path: templates/{{ base $path }} }
            {{- end }}
{{- end }}

{{- define "millpond.elkFiles" -}}
{{- (.Files.Glob "files/{elasticsearch/setup.sh,elasticsearch/templates/*,kibana/objects.ndjson}").AsConfig }}
{{- end }}
