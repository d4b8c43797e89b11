{{/* The run's configuration as the controller's pod reads it: `run`, with what only the chart knows. */}}
{{- define "itool.config" -}}
{{- $run := deepCopy .Values.run }}
{{- $kubernetes := $run.kubernetes }}
{{- $_ := set $run "runtime" (merge (dict "backend" "kubernetes") ($run.runtime | default dict)) }}
{{- with include "itool.storeEndpoint" . }}
{{- $_ := set $run.store "endpoint_url" . }}
{{- end }}
{{- $_ := set $kubernetes "job_service_account" (include "itool.serviceAccount" (list . "jobs")) }}
{{- $_ := set $kubernetes "serving_service_account" (include "itool.serviceAccount" (list . "serving")) }}
{{- toYaml $run }}
{{- end }}

{{/* URL of S3 as pods reach it; empty for AWS. */}}
{{- define "itool.storeEndpoint" -}}
{{ .Values.run.kubernetes.store_endpoint_url | default .Values.run.store.endpoint_url | default "" }}
{{- end }}

{{/* The controller's image. */}}
{{- define "itool.image" -}}
{{- $kubernetes := .Values.run.kubernetes -}}
{{ $kubernetes.images.controller | default (printf "%s/controller:%s" $kubernetes.image_repository $kubernetes.image_tag) }}
{{- end }}

{{/* Not empty when the controller runs a vLLM Deployment. */}}
{{- define "itool.serves" -}}
{{- with .Values.run.policy }}{{ if and (eq .backend "vllm") (not .url) }}yes{{ end }}{{ end }}
{{- end }}

{{/* The training stages that span several pods, as a JSON list. */}}
{{- define "itool.distributedStages" -}}
{{- $names := list }}
{{- range $name, $pod := .Values.run.kubernetes.stages }}
{{- if gt (int $pod.nodes) 1 }}{{ $names = append $names $name }}{{ end }}
{{- end }}
{{- toJson $names }}
{{- end }}
