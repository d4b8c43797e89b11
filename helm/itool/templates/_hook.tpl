{{/* Annotations of what the preflight creates: before everything else, gone afterwards, its words shown when it fails. Takes a weight. */}}
{{- define "itool.preflightHook" -}}
helm.sh/hook: pre-install,pre-upgrade
helm.sh/hook-weight: {{ . | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded,hook-failed
helm.sh/hook-output-log-policy: hook-failed
{{- end }}

{{/* Name of the preflight's objects. */}}
{{- define "itool.preflight" -}}
{{ include "itool.release" . }}-preflight
{{- end }}
