{{/* Written by `cargo xtask values` from charts/values.tsv: change it there. */}}

{{- define "base.notes" -}}
{{- $namespace := .Namespace }}
{{- with .Values }}
{{- with .base }}
{{- if hasKey . "enableIstioConfigCRDs" }}{{- if ne (toString .enableIstioConfigCRDs) "true" }}
- base.enableIstioConfigCRDs: set base.enableCRDTemplates: false.
{{- end }}{{- end }}
{{- if hasKey . "validateGateway" }}{{- if .validateGateway }}
- base.validateGateway: Gateways are always validated.
{{- end }}{{- end }}
{{- if hasKey . "validationFailurePolicy" }}{{- if .validationFailurePolicy }}
- base.validationFailurePolicy: istiod sets it: Ignore until it has answered the webhook once, then Fail.
{{- end }}{{- end }}
{{- end }}
{{- if hasKey . "compatibilityVersion" }}{{- if .compatibilityVersion }}
- compatibilityVersion: behaviour does not depend on a version of Istio; CHANGELOG.md says what has changed.
{{- end }}{{- end }}
{{- if hasKey . "enableReaderRBAC" }}{{- if .enableReaderRBAC }}
- enableReaderRBAC: a mesh is one cluster in this version: no reader for other clusters is made.
{{- end }}{{- end }}
{{- if hasKey . "experimental" }}{{- if and .experimental (ne (toJson .experimental) "{\"stableValidationPolicy\":false}") }}
- experimental: what is not supported is always refused by the webhook.
{{- end }}{{- end }}
{{- with .global }}
{{- if hasKey . "agentgateway" }}{{- if .agentgateway }}
- global.agentgateway: waypoints are Karst's own.
{{- end }}{{- end }}
{{- if hasKey . "arch" }}{{- if .arch }}
- global.arch: deprecated in Istio: set affinity.
{{- end }}{{- end }}
{{- if hasKey . "certSigners" }}{{- if .certSigners }}
- global.certSigners: no CertificateSigningRequests are made: put an intermediate into Secret cacerts.
{{- end }}{{- end }}
{{- if hasKey . "defaultNodeSelector" }}{{- if .defaultNodeSelector }}
- global.defaultNodeSelector: deprecated in Istio: set nodeSelector.
{{- end }}{{- end }}
{{- if hasKey . "defaultResources" }}{{- if and .defaultResources (ne (toJson .defaultResources) "{\"requests\":{\"cpu\":\"10m\"}}") (ne (toJson .defaultResources) "{\"requests\":{\"cpu\":\"100m\",\"memory\":\"100Mi\"}}") }}
- global.defaultResources: deprecated in Istio: set resources.
{{- end }}{{- end }}
{{- if hasKey . "defaultTolerations" }}{{- if .defaultTolerations }}
- global.defaultTolerations: deprecated in Istio: set tolerations.
{{- end }}{{- end }}
{{- if hasKey . "enableReaderRBAC" }}{{- if .enableReaderRBAC }}
- global.enableReaderRBAC: a mesh is one cluster in this version: no reader for other clusters is made.
{{- end }}{{- end }}
{{- if hasKey . "ipFamilies" }}{{- if .ipFamilies }}
- global.ipFamilies: for a control plane outside of the cluster: set ipFamilies of the chart istiod.
{{- end }}{{- end }}
{{- if hasKey . "ipFamilyPolicy" }}{{- if .ipFamilyPolicy }}
- global.ipFamilyPolicy: for a control plane outside of the cluster: set ipFamilyPolicy of the chart istiod.
{{- end }}{{- end }}
{{- if hasKey . "istiod" }}{{- if and .istiod (ne (toJson .istiod) "{\"enableAnalysis\":false}") }}
- global.istiod: problems of objects are always in istiod's log and metrics and in statuses.
{{- end }}{{- end }}
{{- if hasKey . "jwtPolicy" }}{{- if and .jwtPolicy (ne (toString .jwtPolicy) "third-party-jwt") }}
- global.jwtPolicy: only tokens that are bound to a pod are accepted.
{{- end }}{{- end }}
{{- if hasKey . "meshID" }}{{- if .meshID }}
- global.meshID: a mesh is one cluster in this version, and its trust domain names it.
{{- end }}{{- end }}
{{- with .multiCluster }}
{{- if hasKey . "globalDomainSuffix" }}{{- if .globalDomainSuffix }}
- global.multiCluster.globalDomainSuffix: deprecated in Istio, and without effect there, too.
{{- end }}{{- end }}
{{- if hasKey . "includeEnvoyFilter" }}{{- if .includeEnvoyFilter }}
- global.multiCluster.includeEnvoyFilter: there is no Envoy.
{{- end }}{{- end }}
{{- end }}
{{- if hasKey . "nativeNftables" }}{{- if .nativeNftables }}
- global.nativeNftables: redirection is done by eBPF: neither iptables nor nftables are needed.
{{- end }}{{- end }}
{{- if hasKey . "omitSidecarInjectorConfigMap" }}{{- if .omitSidecarInjectorConfigMap }}
- global.omitSidecarInjectorConfigMap: there is no such ConfigMap.
{{- end }}{{- end }}
{{- if hasKey . "operatorManageWebhooks" }}{{- if .operatorManageWebhooks }}
- global.operatorManageWebhooks: istiod completes its webhook's configuration, which the chart installs.
{{- end }}{{- end }}
{{- if hasKey . "podDNSSearchNamespaces" }}{{- if .podDNSSearchNamespaces }}
- global.podDNSSearchNamespaces: DNS of the pods is left as it is.
{{- end }}{{- end }}
{{- with .proxy }}
{{- if hasKey . "autoInject" }}{{- if and .autoInject (ne (toString .autoInject) "enabled") }}
- global.proxy.autoInject: there is no injection: pods join by the label istio.io/dataplane-mode.
{{- end }}{{- end }}
{{- if hasKey . "capNetBindService" }}{{- if and .capNetBindService (ne (toString .capNetBindService) "false") }}
- global.proxy.capNetBindService: of sidecars, which there are none of; gateways open ports below 1024 without a privilege.
{{- end }}{{- end }}
{{- if hasKey . "componentLogLevel" }}{{- if and .componentLogLevel (ne (toString .componentLogLevel) "misc:error") }}
- global.proxy.componentLogLevel: components are Envoy's: set global.proxy.logLevel for waypoints.
{{- end }}{{- end }}
{{- if hasKey . "enableCoreDump" }}{{- if .enableCoreDump }}
- global.proxy.enableCoreDump: no core files are written.
{{- end }}{{- end }}
{{- if hasKey . "excludeIPRanges" }}{{- if .excludeIPRanges }}
- global.proxy.excludeIPRanges: all TCP of the pods in the mesh is redirected.
{{- end }}{{- end }}
{{- if hasKey . "excludeInboundPorts" }}{{- if .excludeInboundPorts }}
- global.proxy.excludeInboundPorts: redirection is the same for all pods; the annotation ambient.istio.io/bypass-inbound-capture of a pod leaves it out.
{{- end }}{{- end }}
{{- if hasKey . "excludeOutboundPorts" }}{{- if .excludeOutboundPorts }}
- global.proxy.excludeOutboundPorts: all TCP of the pods in the mesh is redirected.
{{- end }}{{- end }}
{{- if hasKey . "holdApplicationUntilProxyStarts" }}{{- if .holdApplicationUntilProxyStarts }}
- global.proxy.holdApplicationUntilProxyStarts: there is no sidecar to wait for: a pod's sandbox is created once it is redirected.
{{- end }}{{- end }}
{{- if hasKey . "image" }}{{- if and .image (ne (toString .image) "proxyv2") }}
- global.proxy.image: proxies are not Envoy: set global.waypoint.image.
{{- end }}{{- end }}
{{- if hasKey . "includeIPRanges" }}{{- if and .includeIPRanges (ne (toString .includeIPRanges) "*") }}
- global.proxy.includeIPRanges: all TCP of the pods in the mesh is redirected.
{{- end }}{{- end }}
{{- if hasKey . "includeInboundPorts" }}{{- if and .includeInboundPorts (ne (toString .includeInboundPorts) "*") }}
- global.proxy.includeInboundPorts: redirection is the same for all pods; the annotation ambient.istio.io/bypass-inbound-capture of a pod leaves it out.
{{- end }}{{- end }}
{{- if hasKey . "includeOutboundPorts" }}{{- if .includeOutboundPorts }}
- global.proxy.includeOutboundPorts: all TCP of the pods in the mesh is redirected.
{{- end }}{{- end }}
{{- if hasKey . "lifecycle" }}{{- if .lifecycle }}
- global.proxy.lifecycle: of sidecars, which there are none of: set it by gatewayClasses.
{{- end }}{{- end }}
{{- if hasKey . "outlierLogPath" }}{{- if .outlierLogPath }}
- global.proxy.outlierLogPath: ejections are in the metrics of waypoints.
{{- end }}{{- end }}
{{- if hasKey . "privileged" }}{{- if .privileged }}
- global.proxy.privileged: waypoints and gateways never run privileged.
{{- end }}{{- end }}
{{- if hasKey . "readinessFailureThreshold" }}{{- if and .readinessFailureThreshold (ne (toString .readinessFailureThreshold) "4") }}
- global.proxy.readinessFailureThreshold: set the probe of waypoints by gatewayClasses.
{{- end }}{{- end }}
{{- if hasKey . "readinessInitialDelaySeconds" }}{{- if .readinessInitialDelaySeconds }}
- global.proxy.readinessInitialDelaySeconds: set the probe of waypoints by gatewayClasses.
{{- end }}{{- end }}
{{- if hasKey . "readinessPeriodSeconds" }}{{- if and .readinessPeriodSeconds (ne (toString .readinessPeriodSeconds) "15") }}
- global.proxy.readinessPeriodSeconds: set the probe of waypoints by gatewayClasses.
{{- end }}{{- end }}
{{- if hasKey . "resources" }}{{- if and .resources (ne (toJson .resources) "{\"limits\":{\"cpu\":\"2000m\",\"memory\":\"1024Mi\"},\"requests\":{\"cpu\":\"100m\",\"memory\":\"128Mi\"}}") }}
- global.proxy.resources: of sidecars, which there are none of: set global.waypoint.resources.
{{- end }}{{- end }}
{{- if hasKey . "seccompProfile" }}{{- if .seccompProfile }}
- global.proxy.seccompProfile: waypoints run with RuntimeDefault: change it by gatewayClasses.
{{- end }}{{- end }}
{{- if hasKey . "startupProbe" }}{{- if and .startupProbe (ne (toJson .startupProbe) "{\"enabled\":true,\"failureThreshold\":600}") }}
- global.proxy.startupProbe: waypoints are ready within a second, and have no startup probe.
{{- end }}{{- end }}
{{- if hasKey . "statusPort" }}{{- if and .statusPort (ne (toString .statusPort) "15020") }}
- global.proxy.statusPort: metrics are on 15020 and readiness is on 15021, for all proxies.
{{- end }}{{- end }}
{{- if hasKey . "tracer" }}{{- if and .tracer (ne (toString .tracer) "none") }}
- global.proxy.tracer: name a provider in meshConfig.extensionProviders, and set the sampling in a Telemetry (docs/tasks/tracing.md).
{{- end }}{{- end }}
{{- if hasKey . "variant" }}{{- if and .variant (ne (toString .variant) "distroless") }}
- global.proxy.variant: there is one variant of each image, without a shell.
{{- end }}{{- end }}
{{- end }}
{{- if hasKey . "proxy_init" }}{{- if and .proxy_init (ne (toJson .proxy_init) "{\"image\":\"proxyv2\"}") (ne (toJson .proxy_init) "{\"forceApplyIptables\":false,\"image\":\"proxyv2\"}") }}
- global.proxy_init: there is no init container.
{{- end }}{{- end }}
{{- if hasKey . "tracer" }}{{- if .tracer }}
- global.tracer: name a provider in meshConfig.extensionProviders, and set the sampling in a Telemetry (docs/tasks/tracing.md).
{{- end }}{{- end }}
{{- if hasKey . "variant" }}{{- if and .variant (ne (toString .variant) "distroless") }}
- global.variant: there is one variant of each image, without a shell.
{{- end }}{{- end }}
{{- end }}
{{- if hasKey . "ownerName" }}{{- if .ownerName }}
- ownerName: deprecated in Istio, for its operator.
{{- end }}{{- end }}
{{- if hasKey . "profile" }}{{- if and .profile (ne (toString .profile) "openshift") (ne (toString .profile) "openshift-ambient") (ne (toString .profile) "remote") (ne (toString .profile) "ambient-windows") }}
- profile: Karst has one data plane, without sidecars, and one profile: the values of these charts.
{{- end }}{{- end }}
{{- if hasKey . "revision" }}{{- if .revision }}
- revision: CRDs are the same for all revisions.
{{- end }}{{- end }}
{{- end }}
{{- end }}

{{- define "base.elsewhere" -}}
{{- $namespace := .Namespace }}
{{- with .Values }}
{{- with .global }}
{{- if hasKey . "caAddress" }}{{- if .caAddress }}
- global.caAddress: used by the charts ztunnel and gateway.
{{- end }}{{- end }}
{{- if hasKey . "configValidation" }}{{- if true }}
- global.configValidation: used by the chart istiod.
{{- end }}{{- end }}
{{- if hasKey . "defaultPodDisruptionBudget" }}{{- if .defaultPodDisruptionBudget }}
- global.defaultPodDisruptionBudget: used by the chart istiod.
{{- end }}{{- end }}
{{- if hasKey . "hub" }}{{- if .hub }}
- global.hub: used by the charts with pods.
{{- end }}{{- end }}
{{- if hasKey . "imagePullPolicy" }}{{- if .imagePullPolicy }}
- global.imagePullPolicy: used by the charts with pods.
{{- end }}{{- end }}
{{- if hasKey . "imagePullSecrets" }}{{- if .imagePullSecrets }}
- global.imagePullSecrets: used by the charts with pods.
{{- end }}{{- end }}
{{- if hasKey . "istioNamespace" }}{{- if .istioNamespace }}
- global.istioNamespace: used by the charts ztunnel and gateway.
{{- end }}{{- end }}
{{- if hasKey . "logAsJson" }}{{- if .logAsJson }}
- global.logAsJson: used by the charts with pods.
{{- end }}{{- end }}
{{- if hasKey . "logging" }}{{- if .logging }}
- global.logging: used by the charts with pods.
{{- end }}{{- end }}
{{- with .multiCluster }}
{{- if hasKey . "clusterName" }}{{- if .clusterName }}
- global.multiCluster.clusterName: used by the charts istiod, ztunnel and gateway.
{{- end }}{{- end }}
{{- end }}
{{- if hasKey . "network" }}{{- if .network }}
- global.network: used by the charts istiod, ztunnel and gateway.
{{- end }}{{- end }}
{{- if hasKey . "networkPolicy" }}{{- if .networkPolicy }}
- global.networkPolicy: used by the charts with pods.
{{- end }}{{- end }}
{{- if hasKey . "platform" }}{{- if and .platform (ne (toString .platform) "openshift") }}
- global.platform: used by the chart cni.
{{- end }}{{- end }}
{{- if hasKey . "priorityClassName" }}{{- if .priorityClassName }}
- global.priorityClassName: used by the chart istiod.
{{- end }}{{- end }}
{{- with .proxy }}
{{- if hasKey . "clusterDomain" }}{{- if .clusterDomain }}
- global.proxy.clusterDomain: used by the charts istiod, ztunnel and gateway.
{{- end }}{{- end }}
{{- if hasKey . "logLevel" }}{{- if .logLevel }}
- global.proxy.logLevel: used by the chart istiod.
{{- end }}{{- end }}
{{- end }}
{{- if hasKey . "tag" }}{{- if .tag }}
- global.tag: used by the charts with pods.
{{- end }}{{- end }}
{{- if hasKey . "waypoint" }}{{- if .waypoint }}
- global.waypoint: used by the chart istiod.
{{- end }}{{- end }}
{{- end }}
{{- if hasKey . "revisionTags" }}{{- if .revisionTags }}
- revisionTags: used by the chart istiod.
{{- end }}{{- end }}
{{- end }}
{{- end }}

{{- define "base.refused" -}}
{{- $namespace := .Namespace }}
{{- with .Values }}
{{- if hasKey . "_internal_defaults_do_not_set" }}{{- if ._internal_defaults_do_not_set }}
- _internal_defaults_do_not_set: write its keys at the top, as in Istio.
{{- end }}{{- end }}
{{- with .base }}
{{- if hasKey . "validationCABundle" }}{{- if .validationCABundle }}
- base.validationCABundle: istiod writes the bundle itself.
{{- end }}{{- end }}
{{- if hasKey . "validationURL" }}{{- if .validationURL }}
- base.validationURL: the webhook is istiod's in this cluster.
{{- end }}{{- end }}
{{- end }}
{{- with .global }}
{{- if hasKey . "caName" }}{{- if .caName }}
- global.caName: certificates come from istiod itself; to use an authority of your own, put an intermediate into Secret cacerts.
{{- end }}{{- end }}
{{- if hasKey . "configCluster" }}{{- if .configCluster }}
- global.configCluster: a control plane outside of the cluster is not supported: install the chart istiod in each cluster.
{{- end }}{{- end }}
{{- if hasKey . "externalIstiod" }}{{- if .externalIstiod }}
- global.externalIstiod: a control plane outside of the cluster is not supported: install the chart istiod in each cluster.
{{- end }}{{- end }}
{{- if hasKey . "meshNetworks" }}{{- if .meshNetworks }}
- global.meshNetworks: a mesh is one network in this version; pods of others would be reached without the gateways that are named here.
{{- end }}{{- end }}
{{- if hasKey . "mountMtlsCerts" }}{{- if .mountMtlsCerts }}
- global.mountMtlsCerts: certificates are never mounted: proxies request theirs from istiod.
{{- end }}{{- end }}
{{- with .multiCluster }}
{{- if hasKey . "enabled" }}{{- if .enabled }}
- global.multiCluster.enabled: a mesh is one cluster in this version: leave it out.
{{- end }}{{- end }}
{{- end }}
{{- if hasKey . "pilotCertProvider" }}{{- if and .pilotCertProvider (ne (toString .pilotCertProvider) "istiod") }}
- global.pilotCertProvider: istiod's own certificate is signed by its authority: use istiod, or leave it out.
{{- end }}{{- end }}
{{- if hasKey . "platform" }}{{- if has (toString .platform) (list "openshift") }}
- global.platform: OpenShift needs SecurityContextConstraints that these charts do not have; nobody has tried it.
{{- end }}{{- end }}
{{- if hasKey . "remotePilotAddress" }}{{- if .remotePilotAddress }}
- global.remotePilotAddress: a control plane outside of the cluster is not supported: install the chart istiod in each cluster.
{{- end }}{{- end }}
{{- if hasKey . "resourceScope" }}{{- if and .resourceScope (ne (toString .resourceScope) "all") (ne (toString .resourceScope) "undefined") }}
- global.resourceScope: the charts install the objects of the cluster and those of namespaces together: use all, or leave it out.
{{- end }}{{- end }}
{{- if hasKey . "revision" }}{{- if .revision }}
- global.revision: set revision, outside of global.
{{- end }}{{- end }}
{{- with .sds }}
{{- with .token }}
{{- if hasKey . "aud" }}{{- if and .aud (ne (toString .aud) "istio-ca") }}
- global.sds.token.aud: tokens of proxies have the audience istio-ca.
{{- end }}{{- end }}
{{- end }}
{{- end }}
{{- with .sts }}
{{- if hasKey . "servicePort" }}{{- if and .servicePort (ne (toString .servicePort) "0") }}
- global.sts.servicePort: there is no security token service.
{{- end }}{{- end }}
{{- end }}
{{- if hasKey . "trustBundleName" }}{{- if and .trustBundleName (ne (toString .trustBundleName) "istio-ca-root-cert") }}
- global.trustBundleName: the root certificate is in ConfigMap istio-ca-root-cert, where proxies of all releases look for it.
{{- end }}{{- end }}
{{- if hasKey . "trustDomain" }}{{- if and .trustDomain (ne (toString .trustDomain) "cluster.local") }}
- global.trustDomain: set meshConfig.trustDomain of the charts istiod, ztunnel and gateway.
{{- end }}{{- end }}
{{- end }}
{{- if hasKey . "profile" }}{{- if has (toString .profile) (list "openshift" "openshift-ambient" "remote" "ambient-windows") }}
- profile: there is no such profile: neither OpenShift, nor Windows, nor a control plane outside of the cluster is supported.
{{- end }}{{- end }}
{{- if hasKey . "resourceScope" }}{{- if and .resourceScope (ne (toString .resourceScope) "all") (ne (toString .resourceScope) "undefined") }}
- resourceScope: the charts install the objects of the cluster and those of namespaces together: use all, or leave it out.
{{- end }}{{- end }}
{{- end }}
{{- end }}
