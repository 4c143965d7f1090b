{{- /* Programs that are not millpond's: what they have in common. They are given a dict: root, component, values (of the program),
config (its files), ports (name -> port), service (more of its Service), elastic (its image is Elastic's). */ -}}

{{- /* A set of one pod, up to the pod. */ -}}
{{- define "millpond.foreignSet" -}}
apiVersion: apps/v1
kind: {{ .kind | default "StatefulSet" }}
metadata:
  name: {{ include "millpond.fullname" .root }}-{{ .component }}
  labels:
    {{- include "millpond.labels" (list .root .component) | nindent 4 }}
spec:
  replicas: 1
  {{- if .kind }}
  strategy: { type: Recreate }
  {{- else }}
  serviceName: {{ include "millpond.fullname" .root }}-{{ .component }}
  {{- end }}
  selector:
    matchLabels:
      {{- include "millpond.selector" (list .root .component) | nindent 6 }}
  template:
    metadata:
      labels:
        {{- include "millpond.selector" (list .root .component) | nindent 8 }}
      annotations:
        checksum/config: {{ sha256sum .config }}
{{- end }}

{{- /* Images of Elastic may have any user whose group is 0, and write beside their data (Elasticsearch, a keystore beside its
settings); not tried with a root that is read-only. */ -}}
{{- define "millpond.foreignPod" -}}
serviceAccountName: {{ include "millpond.fullname" .root }}-{{ .component }}
automountServiceAccountToken: false
# Kubernetes would set ELASTICSEARCH_…, KIBANA_… and LOGSTASH_… of its own, and these programs take settings from there.
enableServiceLinks: false
securityContext:
  {{- include "millpond.podSecurity" . | replace "runAsGroup: 65532" (printf "runAsGroup: %d" (ternary 0 65532 (hasKey . "elastic"))) | nindent 2 }}
{{- include "millpond.pullSecrets" .root }}
{{- end }}

{{- define "millpond.foreignContainer" -}}
image: {{ include "millpond.foreignImage" (list .root .values.image) }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
securityContext:
  {{- include "millpond.containerSecurity" . | replace "RootFilesystem: true" (printf "RootFilesystem: %t" (not (hasKey . "elastic"))) | nindent 2 }}
resources:
  {{- toYaml .values.resources | nindent 2 }}
{{- with .ports }}
ports:
  {{- range $name, $port := . }}
  - { name: {{ $name }}, containerPort: {{ $port }} }
  {{- end }}
{{- end }}
{{- end }}

{{- define "millpond.foreignClaim" -}}
volumeClaimTemplates:
  - metadata:
      name: data
    spec:
      accessModes: [ReadWriteOnce]
      {{- with .values.storageClass }}
      storageClassName: {{ . }}
      {{- end }}
      resources: { requests: { storage: {{ .values.storage }} } }
{{- end }}

{{- /* Its files, and its Service. */ -}}
{{- define "millpond.foreignAround" }}
apiVersion: v1
kind: ConfigMap
metadata:
  name: {{ include "millpond.fullname" .root }}-{{ .component }}
  labels:
    {{- include "millpond.labels" (list .root .component) | nindent 4 }}
data:
  {{- .config | nindent 2 }}
---
apiVersion: v1
kind: Service
metadata:
  name: {{ include "millpond.fullname" .root }}-{{ .component }}
  labels:
    {{- include "millpond.labels" (list .root .component) | nindent 4 }}
spec:
  {{- with .service }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  ports:
    {{- range $name, $port := .ports }}
    - { name: {{ $name }}, port: {{ $port }}, targetPort: {{ $name }} }
    {{- end }}
  selector:
    {{- include "millpond.selector" (list .root .component) | nindent 4 }}
{{- end }}
