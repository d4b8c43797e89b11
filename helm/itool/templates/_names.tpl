{{/* First part of every name. At most 45 characters: "-controller-<revision>" must fit into a label. A longer one ends in a hash, so that
two releases never share it. */}}
{{- define "itool.release" -}}
{{- $name := .Release.Name -}}
{{ gt (len $name) 45 | ternary (printf "%s-%s" ($name | trunc 40 | trimAll "-.") ($name | sha256sum | trunc 4)) $name }}
{{- end }}

{{/* Name of the ConfigMap with the run's configuration. */}}
{{- define "itool.configName" -}}
{{ include "itool.release" . }}-config
{{- end }}

{{/* Name of the service account of one kind of pods. Takes [., controller | jobs | serving]. */}}
{{- define "itool.serviceAccount" -}}
{{- $root := index . 0 }}{{ $kind := index . 1 }}
{{- (index $root.Values.serviceAccounts $kind).name | default (printf "%s-%s" (include "itool.release" $root) $kind) }}
{{- end }}

{{/* What marks every pod of the run, whoever created it. */}}
{{- define "itool.runLabels" -}}
app.kubernetes.io/name: itool
itool/run: {{ .Values.run.run | quote }}
{{- end }}

{{/* Labels of a pod that the chart creates; the configured ones cannot replace ours. Takes [., component]. */}}
{{- define "itool.podLabels" -}}
{{- $root := index . 0 }}
{{- $ours := dict "app.kubernetes.io/component" (index . 1) "app.kubernetes.io/instance" $root.Release.Name }}
{{- toYaml (merge (include "itool.runLabels" $root | fromYaml) $ours $root.Values.run.kubernetes.labels) }}
{{- end }}

{{/* Labels of an object of the chart. Takes [., component]. */}}
{{- define "itool.labels" -}}
{{- $root := index . 0 }}
{{- $chart := dict "helm.sh/chart" (printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_") }}
{{- $_ := set $chart "app.kubernetes.io/version" $root.Chart.AppVersion }}
{{- $_ := set $chart "app.kubernetes.io/managed-by" $root.Release.Service }}
{{- toYaml (merge $chart (include "itool.podLabels" . | fromYaml)) }}
{{- end }}

{{/* A service account without a token, unless it exists already. Takes [., controller | jobs | serving, component]. */}}
{{- define "itool.serviceAccountManifest" -}}
{{- $root := index . 0 }}
{{- with index $root.Values.serviceAccounts (index . 1) }}
{{- if .create -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ include "itool.serviceAccount" $ | quote }}
  labels: {{- include "itool.labels" (list $root (index $ 2)) | nindent 4 }}
  {{- with .annotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
automountServiceAccountToken: false
{{- end }}
{{- end }}
{{- end }}
