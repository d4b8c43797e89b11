{{/* What the controller's pod and the pods of the checks have in common. Takes [., service account, mount the token?]. */}}
{{- define "itool.podSpec" -}}
{{- $root := index . 0 }}{{ $kubernetes := $root.Values.run.kubernetes -}}
restartPolicy: Never
serviceAccountName: {{ index . 1 | quote }}
automountServiceAccountToken: {{ index . 2 }}
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  seccompProfile:
    type: RuntimeDefault
{{- with $kubernetes.image_pull_secrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
{{- with $root.Values.controller }}
{{- with .priorityClass }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with .nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- end }}

{{/* A container of the controller's image, but for its name, command and environment. */}}
{{- define "itool.container" -}}
image: {{ include "itool.image" . | quote }}
imagePullPolicy: {{ .Values.run.kubernetes.image_pull_policy }}
resources: {{- toYaml .Values.controller.resources | nindent 2 }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
terminationMessagePolicy: FallbackToLogsOnError
volumeMounts:
  - name: config
    mountPath: /etc/itool
    readOnly: true
  - name: scratch
    mountPath: /scratch
  {{- with .Values.controller.volumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{/* Folders that may be written, and what is configured, which wins as it does in stage pods. */}}
{{- define "itool.env" -}}
{{- $env := dict }}
{{- range list "HOME" "TMPDIR" "XDG_CACHE_HOME" "XDG_CONFIG_HOME" "XDG_STATE_HOME" }}
{{- $_ := set $env . "/scratch" }}
{{- end }}
{{- range $name, $value := mergeOverwrite $env .Values.controller.env }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end }}

{{/* The configuration, the scratch folder and what is configured. Takes [., name of the ConfigMap] and, when there may be none, true. */}}
{{- define "itool.volumes" -}}
- name: config
  configMap:
    name: {{ index . 1 }}
    {{- if gt (len .) 2 }}
    optional: {{ index . 2 }}
    {{- end }}
- name: scratch
  emptyDir:
    sizeLimit: 1Gi
{{- with (index . 0).Values.controller.volumes }}
{{ toYaml . }}
{{- end }}
{{- end }}
