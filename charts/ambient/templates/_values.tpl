{{/* Written by `cargo xtask values` from charts/values.tsv: change it there. */}}

{{- define "ambient.notes" -}}
{{- $namespace := .Namespace }}
{{- with .Values }}
{{- if hasKey . "compatibilityVersion" }}{{- if .compatibilityVersion }}
- compatibilityVersion: behaviour does not depend on a version of Istio; CHANGELOG.md says what has changed.
{{- end }}{{- end }}
{{- if hasKey . "defaultRevision" }}{{- if .defaultRevision }}
- defaultRevision: set base.defaultRevision.
{{- end }}{{- end }}
{{- if hasKey . "ownerName" }}{{- if .ownerName }}
- ownerName: deprecated in Istio, for its operator.
{{- end }}{{- end }}
{{- if hasKey . "profile" }}{{- if and .profile (ne (toString .profile) "openshift") (ne (toString .profile) "openshift-ambient") (ne (toString .profile) "remote") (ne (toString .profile) "ambient-windows") }}
- profile: Karst has one data plane, without sidecars, and one profile: the values of these charts.
{{- end }}{{- end }}
{{- if hasKey . "revisionTags" }}{{- if .revisionTags }}
- revisionTags: set istiod.revisionTags.
{{- end }}{{- end }}
{{- end }}
{{- end }}

{{- define "ambient.elsewhere" -}}
{{- $namespace := .Namespace }}
{{- with .Values }}
{{- end }}
{{- end }}

{{- define "ambient.refused" -}}
{{- $namespace := .Namespace }}
{{- with .Values }}
{{- if hasKey . "_internal_defaults_do_not_set" }}{{- if ._internal_defaults_do_not_set }}
- _internal_defaults_do_not_set: write its keys at the top, as in Istio.
{{- end }}{{- end }}
{{- if hasKey . "gateways" }}{{- if .gateways }}
- gateways: install the chart gateway beside this one, with release name istio-ingressgateway.
{{- end }}{{- end }}
{{- if hasKey . "meshConfig" }}{{- if .meshConfig }}
- meshConfig: write it as istiod.meshConfig.
{{- end }}{{- end }}
{{- if hasKey . "pilot" }}{{- if .pilot }}
- pilot: write its keys as istiod.KEY.
{{- end }}{{- end }}
{{- if hasKey . "profile" }}{{- if has (toString .profile) (list "openshift" "openshift-ambient" "remote" "ambient-windows") }}
- profile: there is no such profile: neither OpenShift, nor Windows, nor a control plane outside of the cluster is supported.
{{- end }}{{- end }}
{{- if hasKey . "revision" }}{{- if .revision }}
- revision: two revisions cannot share one release: install the charts istiod and ztunnel with revision.
{{- end }}{{- end }}
{{- end }}
{{- end }}
