{{/* Not empty when there is a cluster to ask (not in `helm template`). The list of Secrets, which Helm reads itself, tells: with a cluster
it has a kind even when it is empty. */}}
{{- define "itool.seesCluster" -}}
{{ if lookup "v1" "Secret" .Release.Namespace "" }}yes{{ end }}
{{- end }}

{{/* Fails unless the namespace has the object that a value names. Takes [., kind, name, key, what `kubectl create` needs to create it].
Every namespace has a service account `default`; namespaces themselves are not for everybody to look at. */}}
{{- define "itool.mustExist" -}}
{{- $root := index . 0 }}{{ $kind := index . 1 }}{{ $name := index . 2 }}{{ $namespace := $root.Release.Namespace }}
{{- if and (include "itool.seesCluster" $root) (not (lookup "v1" $kind $namespace $name)) }}
{{- if not (lookup "v1" "ServiceAccount" $namespace "default") }}
{{- fail (printf "namespace %s does not exist; create it: kubectl create namespace %s" $namespace $namespace) }}
{{- end }}
{{- fail (printf "%s = %q, but namespace %s has no such %s; create it: kubectl -n %s create %s" (index . 3) $name $namespace $kind $namespace (index . 4)) }}
{{- end }}
{{- end }}
