{{/*
Written in a small part of Helm's language, which test/chart.ts reads too: paths, if, with, range, include, and the
functions that are used here. What the programs are started with stands in this file alone.
*/}}
{{- define "sluice.image" -}}
{{ .Values.image.repository }}{{ if .Values.image.digest }}@{{ .Values.image.digest }}{{ else }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{- define "sluice.controller.args" -}}
- controller
- --source
- kubernetes
- --state
- /var/lib/sluice
- --listen
- {{ printf "%s:%v" .Values.controller.bindAddress .Values.controller.planStreamPort | quote }}
- --certs
- /etc/sluice/certs
- --metrics
- {{ printf "%s:%v" .Values.controller.bindAddress .Values.controller.metricsPort | quote }}
{{- if .Values.admission.enabled }}
- --admission
- {{ printf "%s:%v" .Values.controller.bindAddress .Values.admission.port | quote }}
- --admission-certs
- {{ include "sluice.admission.certs" . }}
{{- end }}
{{- range .Values.controller.extraArgs }}
- {{ . | quote }}
{{- end }}
{{- end }}

{{- define "sluice.admission.certs" -}}
{{ if .Values.admission.certsSecret }}/etc/sluice/admission{{ else }}/etc/sluice/certs{{ end }}
{{- end }}

{{- define "sluice.admission.client" -}}
service:
  namespace: {{ .Release.Namespace | quote }}
  name: sluice-admission
  path: /admission
  port: 443
{{- with .Values.admission.ca }}
caBundle: {{ b64enc . | quote }}
{{- end }}
{{- end }}

{{- define "sluice.node.args" -}}
- node
- --name
- $(NODE_NAME)
- --controller
- {{ .Values.node.controllerUrl | default (printf "https://sluice-controller.%s.svc:%v" .Release.Namespace .Values.controller.planStreamPort) | quote }}
- --certs
- /etc/sluice/certs
- --state
- /var/lib/sluice
{{- range .Values.node.workloadInterfaces }}
- --workload-interface
- {{ . | quote }}
{{- end }}
- --metrics
- {{ printf "127.0.0.1:%v" .Values.node.metricsPort | quote }}
{{- range .Values.node.extraArgs }}
- {{ . | quote }}
{{- end }}
{{- end }}

{{- define "sluice.node.securityContext" -}}
# The files of the machine are root's, and Kubernetes gives capabilities to no other user. Of root's it has one:
# nftables, routes, the tunnel device, NFQUEUE, conntrack and parameters below /proc/sys/net ask for it.
runAsUser: 0
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
  add: [NET_ADMIN]
{{- end }}

{{- define "sluice.node.volumeMounts" -}}
- name: state
  mountPath: /var/lib/sluice
# /proc/sys itself is read-only in a container (kernel/sysctl.ts).
- name: proc-sys-net
  mountPath: /host/proc/sys/net
{{- end }}

{{- define "sluice.labels" -}}
app.kubernetes.io/name: sluice
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
{{- end }}

{{- define "sluice.controller.selector" -}}
app.kubernetes.io/name: sluice
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: controller
{{- end }}

{{- define "sluice.node.selector" -}}
app.kubernetes.io/name: sluice
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: node
{{- end }}
