{{/* The image: a whole reference, or the hub's; by its digest if one is given, else by its tag. */}}
{{- define "cni.image" -}}
{{- $hub := .Values.hub | default .Values.global.hub }}
{{- $tag := .Values.tag | default .Values.global.tag | default .Chart.AppVersion }}
{{- if contains "/" .Values.image }}{{ .Values.image }}{{ else }}{{ $hub }}/{{ .Values.image }}{{ with .Values.digest }}@{{ . }}{{ else }}:{{ $tag }}{{ end }}{{ end }}
{{- end }}

{{/* The log level: this chart's, or Istio's for all scopes ("info", "default:info"). */}}
{{- define "cni.loglevel" -}}
{{- $said := "" }}
{{- with .Values.global.logging }}{{ $said = .level | default "" | trimPrefix "default:" | trimPrefix "all:" }}{{ end }}
{{- with .Values.logging }}{{ $said = .level | default $said | trimPrefix "default:" | trimPrefix "all:" }}{{ end }}
{{- if not (has $said (list "trace" "debug" "info" "warn" "error")) }}{{ $said = "info" }}{{ end }}
{{- .Values.logLevel | default $said }}
{{- end }}

{{/* Values that cannot be honoured stop the installation, all of them at once (the list is in _values.tpl). */}}
{{- define "cni.check" -}}
{{- $refused := include "cni.refused" (dict "Values" .Values "Namespace" .Release.Namespace) | trim }}
{{- if $refused }}{{ fail (printf "these values cannot be honoured (docs/values.md):\n%s" $refused) }}{{ end }}
{{- end }}

{{/* Directories of the container runtime, by the platform. */}}
{{- define "cni.bin" -}}
{{- $platforms := dict "gke" "/home/kubernetes/bin" "k3d" "/bin" "k3s" "/var/lib/rancher/k3s/data/cni" "microk8s" "/var/snap/microk8s/current/opt/cni/bin" }}
{{- .Values.cniBinDir | default (index $platforms (.Values.global.platform | default "")) | default "/opt/cni/bin" }}
{{- end }}
{{- define "cni.conf" -}}
{{- $platforms := dict "k3d" "/var/lib/rancher/k3s/agent/etc/cni/net.d" "k3s" "/var/lib/rancher/k3s/agent/etc/cni/net.d" "microk8s" "/var/snap/microk8s/current/args/cni-network" }}
{{- .Values.cniConfDir | default (index $platforms (.Values.global.platform | default "")) | default "/etc/cni/net.d" }}
{{- end }}
