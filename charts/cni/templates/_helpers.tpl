{{/* The image: by its digest if one is given, else by its tag. */}}
{{- define "cni.image" -}}
{{ .Values.global.hub }}/{{ .Values.image }}{{ with .Values.digest }}@{{ . }}{{ else }}:{{ .Values.global.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}
