{{/* The image: a whole reference, or the hub's; by its digest if one is given, else by its tag. */}}
{{- define "istiod.image" -}}
{{- $hub := .Values.hub | default .Values.global.hub }}
{{- $tag := .Values.tag | default .Values.global.tag | default .Chart.AppVersion }}
{{- if contains "/" .Values.image }}{{ .Values.image }}{{ else }}{{ $hub }}/{{ .Values.image }}{{ with .Values.digest }}@{{ . }}{{ else }}:{{ $tag }}{{ end }}{{ end }}
{{- end }}

{{/* What the controller runs for Gateways. */}}
{{- define "istiod.waypoint" -}}
{{ .Values.global.hub }}/{{ .Values.global.waypoint.image }}{{ with .Values.global.waypoint.digest }}@{{ . }}{{ else }}:{{ .Values.global.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{/* The image of the page, by the rules of the controller's. */}}
{{- define "istiod.dashboard" -}}
{{- $hub := .Values.hub | default .Values.global.hub }}
{{- $tag := .Values.tag | default .Values.global.tag | default .Chart.AppVersion }}
{{- $page := .Values.dashboard }}
{{- if contains "/" $page.image }}{{ $page.image }}{{ else }}{{ $hub }}/{{ $page.image }}{{ with $page.digest }}@{{ . }}{{ else }}:{{ $tag }}{{ end }}{{ end }}
{{- end }}

{{/* The revision, as the label istio.io/rev has it. */}}
{{- define "istiod.revision" -}}
{{ .Values.revision | default "default" }}
{{- end }}

{{/* The name of what each revision has of its own: istiod, or istiod-REVISION. */}}
{{- define "istiod.name" -}}
istiod{{ if ne (include "istiod.revision" .) "default" }}-{{ .Values.revision }}{{ end }}
{{- end }}

{{/* What tells the pods of this revision from those of others. (A selector cannot change: the default one keeps its own.) */}}
{{- define "istiod.selector" -}}
app: istiod
{{- if eq (include "istiod.revision" .) "default" }}
istio: pilot
{{- else }}
istio.io/rev: {{ .Values.revision }}
{{- end }}
{{- end }}

{{/* Labels of all objects. (What the default revision selects its pods by, others must not have.) */}}
{{- define "istiod.labels" -}}
app: istiod
istio: {{ ternary "pilot" "istiod" (eq (include "istiod.revision" .) "default") }}
istio.io/rev: {{ include "istiod.revision" . }}
{{- end }}

{{/* The domain of services. */}}
{{- define "istiod.domain" -}}
{{- $domain := .Values.clusterDomain }}
{{- with .Values.global.proxy }}{{ $domain = .clusterDomain | default $domain }}{{ end }}
{{- $domain }}
{{- end }}

{{/* The log level: this chart's, or Istio's for all scopes ("info", "default:info"). */}}
{{- define "istiod.loglevel" -}}
{{- $said := "" }}
{{- with .Values.global.logging }}{{ $said = .level | default "" | trimPrefix "default:" | trimPrefix "all:" }}{{ end }}
{{- if not (has $said (list "trace" "debug" "info" "warn" "error")) }}{{ $said = "info" }}{{ end }}
{{- .Values.logLevel | default $said }}
{{- end }}

{{/* Names under which the controller is called: each has to be in its certificate. */}}
{{- define "istiod.hosts" -}}
{{- $names := list (include "istiod.name" .) }}
{{- range .Values.revisionTags }}{{ $names = append $names (printf "istiod-revision-tag-%s" .) }}{{ end }}
{{- $hosts := list }}
{{- $ns := .Release.Namespace }}
{{- $domain := include "istiod.domain" . }}
{{- range $names }}
{{- $hosts = append $hosts (printf "%s.%s.svc" . $ns) }}
{{- $hosts = append $hosts (printf "%s.%s.svc.%s" . $ns $domain) }}
{{- end }}
{{- join "," (append $hosts (include "istiod.name" .)) }}
{{- end }}

{{/* What a Service of the controller offers. */}}
{{- define "istiod.service" -}}
selector: {{ include "istiod.selector" . | nindent 2 }}
{{- with .Values.ipFamilyPolicy }}
ipFamilyPolicy: {{ . }}
{{- end }}
{{- with .Values.ipFamilies }}
ipFamilies: {{ toYaml . | nindent 0 }}
{{- end }}
{{- with .Values.trafficDistribution }}
trafficDistribution: {{ . }}
{{- end }}
ports:
- {name: https-dns, port: 15012, protocol: TCP}
- {name: https-webhook, port: 443, targetPort: 15017, protocol: TCP}
- {name: http-monitoring, port: 15014, protocol: TCP}
{{- end }}

{{/* Values that cannot be honoured stop the installation, all of them at once (the list is in _values.tpl). */}}
{{- define "istiod.check" -}}
{{- $refused := include "istiod.refused" (dict "Values" .Values "Namespace" .Release.Namespace) | trim }}
{{- if $refused }}{{ fail (printf "these values cannot be honoured (docs/values.md):\n%s" $refused) }}{{ end }}
{{- end }}

{{/* The name of the revision's webhook (the controller knows it by this rule, too). */}}
{{- define "istiod.validator" -}}
istio-validator{{ if ne (include "istiod.revision" .) "default" }}-{{ .Values.revision }}{{ end }}-{{ .Release.Namespace }}
{{- end }}

{{/* The name of its ClusterRole. */}}
{{- define "istiod.clusterrole" -}}
istiod-clusterrole{{ if ne (include "istiod.revision" .) "default" }}-{{ .Values.revision }}{{ end }}-{{ .Release.Namespace }}
{{- end }}
