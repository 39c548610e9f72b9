{{/* "true" if a CRD is not there yet, or is this release's. Anybody else's is not touched: helm would refuse the whole installation.
     (Without a cluster, as in `helm template`, none is there.) */}}
{{- define "base.ours" -}}
{{- $there := lookup "apiextensions.k8s.io/v1" "CustomResourceDefinition" "" .name }}
{{- if not $there }}true{{ else }}
{{- $annotations := $there.metadata.annotations | default dict }}
{{- $of := printf "%s/%s" (index $annotations "meta.helm.sh/release-namespace") (index $annotations "meta.helm.sh/release-name") }}
{{- if eq $of (printf "%s/%s" .Release.Namespace .Release.Name) }}true{{ end }}
{{- end }}
{{- end }}

{{/* Values that cannot be honoured stop the installation, all of them at once (the list is in _values.tpl). */}}
{{- define "base.check" -}}
{{- $refused := include "base.refused" (dict "Values" .Values "Namespace" .Release.Namespace) | trim }}
{{- if $refused }}{{ fail (printf "these values cannot be honoured (docs/values.md):\n%s" $refused) }}{{ end }}
{{- end }}

{{/* What the notes say of CRDs that are not touched. */}}
{{- define "base.left" -}}
{{- $left := list }}
{{- if .Values.base.enableCRDTemplates }}
{{- range $path, $_ := .Files.Glob "files/crds/*.yaml" }}
{{- $name := (fromYaml ($.Files.Get $path)).metadata.name }}
{{- if not (has $name $.Values.base.excludedCRDs) }}
{{- if not (include "base.ours" (dict "name" $name "Release" $.Release)) }}{{ $left = append $left $name }}{{ end }}
{{- end }}
{{- end }}
{{- end }}
{{- if $left }}

These CRDs were there before, are not this release's, and are left as they are: {{ join " " $left }}
To have them upgraded from now on, hand them over and upgrade again:
  kubectl annotate --overwrite crd {{ join " " $left }} meta.helm.sh/release-name={{ .Release.Name }} meta.helm.sh/release-namespace={{ .Release.Namespace }}
  kubectl label --overwrite crd {{ join " " $left }} app.kubernetes.io/managed-by=Helm
{{- end }}
{{- end }}
