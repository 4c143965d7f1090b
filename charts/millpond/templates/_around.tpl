{{- /* Objects around a component: a Service, an Ingress, a budget. */ -}}

{{- /* dict: root, component, name, pool (of workers), budget */ -}}
{{- define "millpond.pdb" }}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ .name }}
  labels:
    {{- include "millpond.labels" (list .root .component) | nindent 4 }}
spec:
  maxUnavailable: {{ .budget.maxUnavailable }}
  # What is broken does not hold up a node's drain.
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      {{- include "millpond.selector" (list .root .component) | nindent 6 }}
      {{- with .pool }}
      millpond/pool: {{ . }}
      {{- end }}
{{- end }}

{{- /* dict: root, component, values */ -}}
{{- define "millpond.service" }}
apiVersion: v1
kind: Service
metadata:
  name: {{ include "millpond.fullname" .root }}-{{ .component }}
  labels:
    {{- include "millpond.labels" (list .root .component) | nindent 4 }}
  {{- with .values.service.annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  type: {{ .values.service.type }}
  ports:
    - { name: http, port: {{ .values.service.port }}, targetPort: http, appProtocol: {{ ternary "https" "http" (not (empty .root.Values.httpTls.existingSecret)) }} }
  selector:
    {{- include "millpond.selector" (list .root .component) | nindent 4 }}
{{- if .values.ingress.enabled }}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata:
  name: {{ include "millpond.fullname" .root }}-{{ .component }}
  labels:
    {{- include "millpond.labels" (list .root .component) | nindent 4 }}
  {{- with .values.ingress.annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  {{- with .values.ingress.className }}
  ingressClassName: {{ . }}
  {{- end }}
  rules:
    - host: {{ .values.ingress.host | quote }}
      http:
        paths:
          - path: /
            pathType: Prefix
            backend:
              service:
                name: {{ include "millpond.fullname" .root }}-{{ .component }}
                port: { name: http }
  {{- with .values.ingress.tlsSecret }}
  tls:
    - hosts: [{{ $.values.ingress.host | quote }}]
      secretName: {{ . }}
  {{- end }}
{{- end }}
{{- end }}
