{{/* The image: by its digest if one is given, else by its tag. */}}
{{- define "istiod.image" -}}
{{ .Values.global.hub }}/{{ .Values.image }}{{ with .Values.digest }}@{{ . }}{{ else }}:{{ .Values.global.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{/* What the controller runs for Gateways. */}}
{{- define "istiod.waypoint" -}}
{{ .Values.global.hub }}/{{ .Values.global.waypoint.image }}{{ with .Values.global.waypoint.digest }}@{{ . }}{{ else }}:{{ .Values.global.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}
