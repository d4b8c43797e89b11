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
{{- end }}

{{/* Folders that may be written. */}}
{{- define "itool.env" -}}
{{- range list "HOME" "TMPDIR" "XDG_CACHE_HOME" "XDG_CONFIG_HOME" "XDG_STATE_HOME" }}
- name: {{ . }}
  value: /scratch
{{- end }}
{{- end }}

{{/* The configuration and the scratch folder. Takes the name of the ConfigMap. */}}
{{- define "itool.volumes" -}}
- name: config
  configMap:
    name: {{ . }}
- name: scratch
  emptyDir:
    sizeLimit: 1Gi
{{- end }}
