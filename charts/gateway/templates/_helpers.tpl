{{/* The image: a whole reference, or the hub's; by its digest if one is given, else by its tag. */}}
{{- define "gateway.image" -}}
{{- $hub := .Values.global.hub }}
{{- $tag := .Values.global.tag | default .Chart.AppVersion }}
{{- if contains "/" .Values.image }}{{ .Values.image }}{{ else }}{{ $hub }}/{{ .Values.image }}{{ with .Values.digest }}@{{ . }}{{ else }}:{{ $tag }}{{ end }}{{ end }}
{{- end }}

{{/* The log level: this chart's, or Istio's for all scopes ("info", "default:info"). */}}
{{- define "gateway.loglevel" -}}
{{- $said := "" }}
{{- with .Values.global.logging }}{{ $said = .level | default "" | trimPrefix "default:" | trimPrefix "all:" }}{{ end }}
{{- if not (has $said (list "trace" "debug" "info" "warn" "error")) }}{{ $said = "info" }}{{ end }}
{{- .Values.logLevel | default $said }}
{{- end }}

{{/* Values that cannot be honoured stop the installation, all of them at once (the list is in _values.tpl). */}}
{{- define "gateway.check" -}}
{{- $refused := include "gateway.refused" (dict "Values" .Values "Namespace" .Release.Namespace) | trim }}
{{- if $refused }}{{ fail (printf "these values cannot be honoured (docs/values.md):\n%s" $refused) }}{{ end }}
{{- end }}


{{/* The name of everything. */}}
{{- define "gateway.name" -}}
{{ .Values.name | default .Release.Name }}
{{- end }}

{{/* Namespace of istiod. */}}
{{- define "gateway.istiod" -}}
{{ .Values.istioNamespace | default .Values.global.istioNamespace | default "istio-system" }}
{{- end }}

{{/* The domain of services. */}}
{{- define "gateway.domain" -}}
{{- $domain := .Values.clusterDomain }}
{{- with .Values.global.proxy }}{{ $domain = .clusterDomain | default $domain }}{{ end }}
{{- $domain }}
{{- end }}
