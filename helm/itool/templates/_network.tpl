{{/* Ports of S3, as a JSON list. */}}
{{- define "itool.storePorts" -}}
{{- $ports := .Values.networkPolicy.store.ports }}
{{- if not $ports }}
{{- $url := urlParse (include "itool.storeEndpoint" . | default "https://s3.amazonaws.com") }}
{{- $ports = list (regexFind "[0-9]+$" (regexFind ":[0-9]+$" $url.host) | default (eq $url.scheme "http" | ternary "80" "443") | int) }}
{{- end }}
{{- toJson $ports }}
{{- end }}

{{/* Not empty when an opening for S3 at any address would open the API server too: they share a port. */}}
{{- define "itool.storeSharesPort" -}}
{{- $ports := list }}
{{- range .Values.networkPolicy.apiServer.ports }}{{ $ports = append $ports (int .) }}{{ end }}
{{- range include "itool.storePorts" . | fromJsonArray }}
{{- if has (int .) $ports }}yes{{ end }}
{{- end }}
{{- end }}

{{/* Selects the pods of the run. Takes [., component, ...]; without a component all of them. */}}
{{- define "itool.podSelector" -}}
{{- $root := index . 0 -}}
matchLabels:
  {{- include "itool.runLabels" $root | nindent 2 }}
{{- with rest . }}
matchExpressions:
  - key: app.kubernetes.io/component
    operator: In
    values: {{ toJson . }}
{{- end }}
{{- end }}

{{/* TCP ports of a NetworkPolicy. Takes a list of numbers. */}}
{{- define "itool.tcp" -}}
{{- range . }}
- protocol: TCP
  port: {{ int . }}
{{- end }}
{{- end }}

{{/* Every address but the API server's, as peers. IPv6 opens only when the API server's IPv6 addresses are known. */}}
{{- define "itool.notTheApiServer" -}}
{{- $four := list }}{{ $six := list }}
{{- range .Values.networkPolicy.apiServer.cidrs }}
{{- if contains ":" . }}{{ $six = append $six . }}{{ else }}{{ $four = append $four . }}{{ end }}
{{- end }}
{{- with $four }}
- ipBlock:
    cidr: 0.0.0.0/0
    except: {{ toJson . }}
{{- end }}
{{- with $six }}
- ipBlock:
    cidr: ::/0
    except: {{ toJson . }}
{{- end }}
{{- end }}

{{/* The rule that opens DNS. */}}
{{- define "itool.dnsRule" -}}
- ports:
    - protocol: UDP
      port: 53
    - protocol: TCP
      port: 53
  {{- with .Values.networkPolicy.dnsPeers }}
  to: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}

{{/* The rule that opens S3. */}}
{{- define "itool.storeRule" -}}
- ports: {{- include "itool.tcp" (include "itool.storePorts" . | fromJsonArray) | trim | nindent 4 }}
  {{- if .Values.networkPolicy.store.peers }}
  to: {{- toYaml .Values.networkPolicy.store.peers | nindent 4 }}
  {{- else if include "itool.storeSharesPort" . }}
  to: {{- include "itool.notTheApiServer" . | trim | nindent 4 }}
  {{- end }}
{{- end }}

{{/* Selects the pods that train together. */}}
{{- define "itool.trainingPods" -}}
matchLabels:
  {{- include "itool.runLabels" . | nindent 2 }}
matchExpressions:
  - key: app.kubernetes.io/component
    operator: In
    values: [stage]
  - key: itool/stage
    operator: In
    values: {{ include "itool.distributedStages" . }}
{{- end }}
