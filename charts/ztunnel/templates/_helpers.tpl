{{/* The image: a whole reference, or the hub's; by its digest if one is given, else by its tag. */}}
{{- define "ztunnel.image" -}}
{{- $hub := .Values.hub | default .Values.global.hub }}
{{- $tag := .Values.tag | default .Values.global.tag | default .Chart.AppVersion }}
{{- if contains "/" .Values.image }}{{ .Values.image }}{{ else }}{{ $hub }}/{{ .Values.image }}{{ with .Values.digest }}@{{ . }}{{ else }}:{{ $tag }}{{ end }}{{ end }}
{{- end }}

{{/* The log level: this chart's, or Istio's for all scopes ("info", "default:info"). */}}
{{- define "ztunnel.loglevel" -}}
{{- $said := "" }}
{{- with .Values.global.logging }}{{ $said = .level | default "" | trimPrefix "default:" | trimPrefix "all:" }}{{ end }}
{{- if not (has $said (list "trace" "debug" "info" "warn" "error")) }}{{ $said = "info" }}{{ end }}
{{- .Values.logLevel | default $said }}
{{- end }}

{{/* Values that cannot be honoured stop the installation, all of them at once (the list is in _values.tpl). */}}
{{- define "ztunnel.check" -}}
{{- $refused := include "ztunnel.refused" (dict "Values" .Values "Namespace" .Release.Namespace) | trim }}
{{- if $refused }}{{ fail (printf "these values cannot be honoured (docs/values.md):\n%s" $refused) }}{{ end }}
{{- end }}

{{/* The name of the DaemonSet and its account. */}}
{{- define "ztunnel.name" -}}
{{ .Values.resourceName | default "ztunnel" }}
{{- end }}

{{/* Namespace of istiod. */}}
{{- define "ztunnel.istiod" -}}
{{ .Values.istioNamespace | default .Values.global.istioNamespace | default .Release.Namespace }}
{{- end }}

{{/* -REVISION; nothing for the default one. */}}
{{- define "ztunnel.suffix" -}}
{{ if and .Values.revision (ne .Values.revision "default") }}-{{ .Values.revision }}{{ end }}
{{- end }}

{{/* The domain of services. */}}
{{- define "ztunnel.domain" -}}
{{- $domain := .Values.clusterDomain }}
{{- with .Values.global.proxy }}{{ $domain = .clusterDomain | default $domain }}{{ end }}
{{- $domain }}
{{- end }}

{{/* The name of the cluster. */}}
{{- define "ztunnel.cluster" -}}
{{- $name := .Values.global.multiCluster.clusterName }}
{{- with .Values.multiCluster }}{{ $name = .clusterName | default $name }}{{ end }}
{{- $name | default "Kubernetes" }}
{{- end }}

{{/* Labels of all objects. */}}
{{- define "ztunnel.labels" -}}
{{- $own := dict "app" "ztunnel" }}
{{- with .Values.revision }}{{ $_ := set $own "istio.io/rev" . }}{{ end }}
{{- toYaml (merge $own .Values.labels) }}
{{- end }}
