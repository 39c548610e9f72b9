{{/* Written by `cargo xtask values` from charts/values.tsv: change it there. */}}

{{- define "istiod.notes" -}}
{{- $namespace := .Namespace }}
{{- with .Values }}
{{- if hasKey . "cni" }}{{- if and .cni (ne (toJson .cni) "{\"enabled\":false,\"provider\":\"default\"}") (ne (toJson .cni) "{\"enabled\":false}") }}
- cni: the chart cni is always needed.
{{- end }}{{- end }}
{{- if hasKey . "compatibilityVersion" }}{{- if .compatibilityVersion }}
- compatibilityVersion: behaviour does not depend on a version of Istio; CHANGELOG.md says what has changed.
{{- end }}{{- end }}
{{- if hasKey . "experimental" }}{{- if and .experimental (ne (toJson .experimental) "{\"stableValidationPolicy\":false}") }}
- experimental: what is not supported is always refused by the webhook.
{{- end }}{{- end }}
{{- if hasKey . "gateways" }}{{- if and .gateways (ne (toJson .gateways) "{\"seccompProfile\":{},\"securityContext\":{}}") }}
- gateways: set it by gatewayClasses; a gateway without a Gateway object is the chart gateway.
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
{{- if hasKey . "istio_cni" }}{{- if .istio_cni }}
- istio_cni: deprecated in Istio; the chart cni is always needed.
{{- end }}{{- end }}
{{- with .istiodRemote }}
{{- if hasKey . "injectionCABundle" }}{{- if .injectionCABundle }}
- istiodRemote.injectionCABundle: there is no injection: pods join by the label istio.io/dataplane-mode.
{{- end }}{{- end }}
{{- if hasKey . "injectionPath" }}{{- if and .injectionPath (ne (toString .injectionPath) "/inject") }}
- istiodRemote.injectionPath: there is no injection: pods join by the label istio.io/dataplane-mode.
{{- end }}{{- end }}
{{- if hasKey . "injectionURL" }}{{- if .injectionURL }}
- istiodRemote.injectionURL: there is no injection: pods join by the label istio.io/dataplane-mode.
{{- end }}{{- end }}
{{- end }}
{{- if hasKey . "keepaliveMaxServerConnectionAge" }}{{- if and .keepaliveMaxServerConnectionAge (ne (toString .keepaliveMaxServerConnectionAge) "30m") }}
- keepaliveMaxServerConnectionAge: connections of proxies to istiod have no greatest age.
{{- end }}{{- end }}
{{- with .meshConfig }}
{{- if hasKey . "accessLogEncoding" }}{{- if and .accessLogEncoding (ne (toString .accessLogEncoding) "TEXT") }}
- meshConfig.accessLogEncoding: set global.logAsJson of the proxies' charts.
{{- end }}{{- end }}
{{- if hasKey . "accessLogFormat" }}{{- if .accessLogFormat }}
- meshConfig.accessLogFormat: the format is Istio's default one (docs/telemetry.md).
{{- end }}{{- end }}
{{- if hasKey . "ambientMesh" }}{{- if .ambientMesh }}
- meshConfig.ambientMesh: deprecated in Istio.
{{- end }}{{- end }}
{{- if hasKey . "authPolicy" }}{{- if .authPolicy }}
- meshConfig.authPolicy: deprecated in Istio: use PeerAuthentication.
{{- end }}{{- end }}
{{- if hasKey . "configSources" }}{{- if .configSources }}
- meshConfig.configSources: objects are read from this cluster's API server.
{{- end }}{{- end }}
{{- if hasKey . "connectTimeout" }}{{- if and .connectTimeout (ne (toString .connectTimeout) "10s") }}
- meshConfig.connectTimeout: set connectionPool.tcp.connectTimeout in DestinationRules.
{{- end }}{{- end }}
{{- with .defaultConfig }}
{{- if hasKey . "binaryPath" }}{{- if .binaryPath }}
- meshConfig.defaultConfig.binaryPath: there is no Envoy.
{{- end }}{{- end }}
{{- if hasKey . "configPath" }}{{- if and .configPath (ne (toString .configPath) "./etc/istio/proxy") }}
- meshConfig.defaultConfig.configPath: there is no Envoy.
{{- end }}{{- end }}
{{- if hasKey . "controlPlaneAuthPolicy" }}{{- if and .controlPlaneAuthPolicy (ne (toString .controlPlaneAuthPolicy) "MUTUAL_TLS") }}
- meshConfig.defaultConfig.controlPlaneAuthPolicy: istiod is always called by TLS.
{{- end }}{{- end }}
{{- if hasKey . "customConfigFile" }}{{- if .customConfigFile }}
- meshConfig.defaultConfig.customConfigFile: there is no Envoy.
{{- end }}{{- end }}
{{- if hasKey . "discoveryAddress" }}{{- if .discoveryAddress }}
- meshConfig.defaultConfig.discoveryAddress: waypoints call the istiod that deploys them; set xdsAddress of the other charts.
{{- end }}{{- end }}
{{- if hasKey . "drainDuration" }}{{- if and .drainDuration (ne (toString .drainDuration) "45s") }}
- meshConfig.defaultConfig.drainDuration: set CONNECTION_TERMINATION_DEADLINE by gatewayClasses.
{{- end }}{{- end }}
{{- if hasKey . "envoyAccessLogService" }}{{- if .envoyAccessLogService }}
- meshConfig.defaultConfig.envoyAccessLogService: logs are written to the output only.
{{- end }}{{- end }}
{{- if hasKey . "envoyMetricsService" }}{{- if .envoyMetricsService }}
- meshConfig.defaultConfig.envoyMetricsService: metrics are scraped.
{{- end }}{{- end }}
{{- if hasKey . "extraStatTags" }}{{- if .extraStatTags }}
- meshConfig.defaultConfig.extraStatTags: set tagOverrides in a Telemetry.
{{- end }}{{- end }}
{{- if hasKey . "fileFlushInterval" }}{{- if .fileFlushInterval }}
- meshConfig.defaultConfig.fileFlushInterval: logs are written at once.
{{- end }}{{- end }}
{{- if hasKey . "fileFlushMinSizeKb" }}{{- if .fileFlushMinSizeKb }}
- meshConfig.defaultConfig.fileFlushMinSizeKb: logs are written at once.
{{- end }}{{- end }}
{{- if hasKey . "holdApplicationUntilProxyStarts" }}{{- if .holdApplicationUntilProxyStarts }}
- meshConfig.defaultConfig.holdApplicationUntilProxyStarts: there is no sidecar to wait for: a pod's sandbox is created once it is redirected.
{{- end }}{{- end }}
{{- if hasKey . "image" }}{{- if .image }}
- meshConfig.defaultConfig.image: there is one variant of each image, without a shell.
{{- end }}{{- end }}
{{- if hasKey . "interceptionMode" }}{{- if and .interceptionMode (ne (toString .interceptionMode) "REDIRECT") }}
- meshConfig.defaultConfig.interceptionMode: redirection is done by eBPF.
{{- end }}{{- end }}
{{- if hasKey . "meshId" }}{{- if .meshId }}
- meshConfig.defaultConfig.meshId: a mesh is one cluster in this version.
{{- end }}{{- end }}
{{- if hasKey . "proxyAdminPort" }}{{- if and .proxyAdminPort (ne (toString .proxyAdminPort) "15000") }}
- meshConfig.defaultConfig.proxyAdminPort: the admin page is on 15000, loopback.
{{- end }}{{- end }}
{{- if hasKey . "proxyBootstrapTemplatePath" }}{{- if .proxyBootstrapTemplatePath }}
- meshConfig.defaultConfig.proxyBootstrapTemplatePath: there is no Envoy.
{{- end }}{{- end }}
{{- if hasKey . "proxyHeaders" }}{{- if .proxyHeaders }}
- meshConfig.defaultConfig.proxyHeaders: headers are as Istio's by default (docs/routes.md).
{{- end }}{{- end }}
{{- if hasKey . "proxyMetadata" }}{{- if and .proxyMetadata (ne (toJson .proxyMetadata) "{\"ISTIO_META_ENABLE_HBONE\":\"true\"}") }}
- meshConfig.defaultConfig.proxyMetadata: metadata of sidecars: set ambient.dnsCapture of the chart cni, and env of the other charts.
{{- end }}{{- end }}
{{- if hasKey . "proxyStatsMatcher" }}{{- if .proxyStatsMatcher }}
- meshConfig.defaultConfig.proxyStatsMatcher: metrics are Istio's, not Envoy's.
{{- end }}{{- end }}
{{- if hasKey . "readinessProbe" }}{{- if .readinessProbe }}
- meshConfig.defaultConfig.readinessProbe: of VMs, which there are none of in this version.
{{- end }}{{- end }}
{{- if hasKey . "runtimeValues" }}{{- if .runtimeValues }}
- meshConfig.defaultConfig.runtimeValues: there is no Envoy.
{{- end }}{{- end }}
{{- if hasKey . "serviceCluster" }}{{- if and .serviceCluster (ne (toString .serviceCluster) "istio-proxy") }}
- meshConfig.defaultConfig.serviceCluster: there is no Envoy.
{{- end }}{{- end }}
{{- if hasKey . "statNameLength" }}{{- if and .statNameLength (ne (toString .statNameLength) "189") }}
- meshConfig.defaultConfig.statNameLength: metrics are Istio's, not Envoy's.
{{- end }}{{- end }}
{{- if hasKey . "statsCompression" }}{{- if true }}
- meshConfig.defaultConfig.statsCompression: pages of metrics are not compressed.
{{- end }}{{- end }}
{{- if hasKey . "statsdUdpAddress" }}{{- if .statsdUdpAddress }}
- meshConfig.defaultConfig.statsdUdpAddress: metrics are scraped.
{{- end }}{{- end }}
{{- if hasKey . "statusPort" }}{{- if and .statusPort (ne (toString .statusPort) "15020") }}
- meshConfig.defaultConfig.statusPort: metrics are on 15020 and readiness is on 15021.
{{- end }}{{- end }}
{{- if hasKey . "terminationDrainDuration" }}{{- if and .terminationDrainDuration (ne (toString .terminationDrainDuration) "5s") }}
- meshConfig.defaultConfig.terminationDrainDuration: set CONNECTION_TERMINATION_DEADLINE by gatewayClasses, and terminationGracePeriodSeconds of the other charts.
{{- end }}{{- end }}
{{- if hasKey . "tracing" }}{{- if .tracing }}
- meshConfig.defaultConfig.tracing: sampling, customTags and maxPathTagLength are honoured where a provider takes spans; its own collectors report nothing, as in Istio (docs/tasks/tracing.md).
{{- end }}{{- end }}
{{- if hasKey . "zipkinAddress" }}{{- if .zipkinAddress }}
- meshConfig.defaultConfig.zipkinAddress: name a provider in meshConfig.extensionProviders, and set the sampling in a Telemetry (docs/tasks/tracing.md).
{{- end }}{{- end }}
{{- end }}
{{- if hasKey . "defaultHttpRetryPolicy" }}{{- if .defaultHttpRetryPolicy }}
- meshConfig.defaultHttpRetryPolicy: set retries in VirtualServices or HTTPRoutes; without them a request is tried up to three times.
{{- end }}{{- end }}
{{- if hasKey . "defaultProviders" }}{{- if .defaultProviders }}
- meshConfig.defaultProviders: tracing (the first) and accessLogging are honoured; in this version metrics has prometheus.
{{- end }}{{- end }}
{{- if hasKey . "defaultServiceExportTo" }}{{- if and .defaultServiceExportTo (ne (toJson .defaultServiceExportTo) "[\"*\"]") }}
- meshConfig.defaultServiceExportTo: Services are for all namespaces, as in Istio's ambient mode.
{{- end }}{{- end }}
{{- if hasKey . "disableEnvoyListenerLog" }}{{- if .disableEnvoyListenerLog }}
- meshConfig.disableEnvoyListenerLog: there is no Envoy.
{{- end }}{{- end }}
{{- if hasKey . "discoverySelectors" }}{{- if .discoverySelectors }}
- meshConfig.discoverySelectors: istiod reads all namespaces.
{{- end }}{{- end }}
{{- if hasKey . "dnsRefreshRate" }}{{- if .dnsRefreshRate }}
- meshConfig.dnsRefreshRate: names are resolved again when their records end.
{{- end }}{{- end }}
{{- if hasKey . "enableEnvoyAccessLogService" }}{{- if .enableEnvoyAccessLogService }}
- meshConfig.enableEnvoyAccessLogService: logs are written to the output only.
{{- end }}{{- end }}
{{- if hasKey . "enablePrometheusMerge" }}{{- if ne (toString .enablePrometheusMerge) "true" }}
- meshConfig.enablePrometheusMerge: metrics of applications are not merged into the proxies': each is scraped by its own annotations.
{{- end }}{{- end }}
{{- if hasKey . "enableTracing" }}{{- if .enableTracing }}
- meshConfig.enableTracing: name a provider in meshConfig.extensionProviders, and set the sampling in a Telemetry (docs/tasks/tracing.md).
{{- end }}{{- end }}
{{- if hasKey . "extensionProviders" }}{{- if .extensionProviders }}
- meshConfig.extensionProviders: those of kind opentelemetry and zipkin take spans (docs/tasks/tracing.md), those of kind envoyOtelAls the access log (docs/tasks/access-logs.md), those of kind envoyExtAuthzGrpc and envoyExtAuthzHttp decide about requests (docs/tasks/external-authorization.md); others have no effect in this version.
{{- end }}{{- end }}
{{- if hasKey . "h2UpgradePolicy" }}{{- if and .h2UpgradePolicy (ne (toString .h2UpgradePolicy) "DO_NOT_UPGRADE") }}
- meshConfig.h2UpgradePolicy: HTTP/2 is spoken to ports that say so (appProtocol, or the name of the port).
{{- end }}{{- end }}
{{- if hasKey . "hboneIdleTimeout" }}{{- if .hboneIdleTimeout }}
- meshConfig.hboneIdleTimeout: set env POOL_UNUSED_RELEASE_TIMEOUT of the chart ztunnel.
{{- end }}{{- end }}
{{- if hasKey . "inboundClusterStatName" }}{{- if .inboundClusterStatName }}
- meshConfig.inboundClusterStatName: metrics have Istio's names and labels.
{{- end }}{{- end }}
{{- if hasKey . "inboundTrafficPolicy" }}{{- if and .inboundTrafficPolicy (ne (toJson .inboundTrafficPolicy) "{\"mode\":\"PASSTHROUGH\"}") }}
- meshConfig.inboundTrafficPolicy: applications are called at the pod's address.
{{- end }}{{- end }}
{{- if hasKey . "ingressClass" }}{{- if .ingressClass }}
- meshConfig.ingressClass: Ingress objects are not read: use Gateways.
{{- end }}{{- end }}
{{- if hasKey . "ingressControllerMode" }}{{- if and .ingressControllerMode (ne (toString .ingressControllerMode) "OFF") }}
- meshConfig.ingressControllerMode: Ingress objects are not read: use Gateways.
{{- end }}{{- end }}
{{- if hasKey . "ingressSelector" }}{{- if .ingressSelector }}
- meshConfig.ingressSelector: Ingress objects are not read: use Gateways.
{{- end }}{{- end }}
{{- if hasKey . "ingressService" }}{{- if .ingressService }}
- meshConfig.ingressService: Ingress objects are not read: use Gateways.
{{- end }}{{- end }}
{{- if hasKey . "localityLbSetting" }}{{- if .localityLbSetting }}
- meshConfig.localityLbSetting: set it in DestinationRules.
{{- end }}{{- end }}
{{- if hasKey . "outboundClusterStatName" }}{{- if .outboundClusterStatName }}
- meshConfig.outboundClusterStatName: metrics have Istio's names and labels.
{{- end }}{{- end }}
{{- if hasKey . "proxyHttpPort" }}{{- if and .proxyHttpPort (ne (toString .proxyHttpPort) "0") }}
- meshConfig.proxyHttpPort: there is no HTTP proxy.
{{- end }}{{- end }}
{{- if hasKey . "proxyInboundListenPort" }}{{- if and .proxyInboundListenPort (ne (toString .proxyInboundListenPort) "15006") }}
- meshConfig.proxyInboundListenPort: ports of the proxies are fixed.
{{- end }}{{- end }}
{{- if hasKey . "proxyListenPort" }}{{- if and .proxyListenPort (ne (toString .proxyListenPort) "15001") }}
- meshConfig.proxyListenPort: ports of the proxies are fixed.
{{- end }}{{- end }}
{{- if hasKey . "sdsUdsPath" }}{{- if .sdsUdsPath }}
- meshConfig.sdsUdsPath: deprecated in Istio.
{{- end }}{{- end }}
{{- if hasKey . "serviceScopeConfigs" }}{{- if .serviceScopeConfigs }}
- meshConfig.serviceScopeConfigs: a mesh is one cluster in this version.
{{- end }}{{- end }}
{{- if hasKey . "serviceSettings" }}{{- if .serviceSettings }}
- meshConfig.serviceSettings: a mesh is one cluster in this version.
{{- end }}{{- end }}
{{- if hasKey . "statPrefix" }}{{- if .statPrefix }}
- meshConfig.statPrefix: metrics have Istio's names and labels.
{{- end }}{{- end }}
{{- if hasKey . "tcpKeepalive" }}{{- if .tcpKeepalive }}
- meshConfig.tcpKeepalive: set env KEEPALIVE_TIME, KEEPALIVE_INTERVAL and KEEPALIVE_RETRIES of the chart ztunnel.
{{- end }}{{- end }}
{{- if hasKey . "thriftConfig" }}{{- if .thriftConfig }}
- meshConfig.thriftConfig: deprecated in Istio.
{{- end }}{{- end }}
{{- if hasKey . "verifyCertificateAtClient" }}{{- if ne (toString .verifyCertificateAtClient) "true" }}
- meshConfig.verifyCertificateAtClient: servers' certificates are verified where a DestinationRule does not say otherwise.
{{- end }}{{- end }}
{{- end }}
{{- if hasKey . "ownerName" }}{{- if .ownerName }}
- ownerName: deprecated in Istio, for its operator.
{{- end }}{{- end }}
{{- if hasKey . "platform" }}{{- if and .platform (ne (toString .platform) "openshift") }}
- platform: nothing depends on it here.
{{- end }}{{- end }}
{{- if hasKey . "profile" }}{{- if and .profile (ne (toString .profile) "openshift") (ne (toString .profile) "openshift-ambient") (ne (toString .profile) "remote") (ne (toString .profile) "ambient-windows") }}
- profile: Karst has one data plane, without sidecars, and one profile: the values of these charts.
{{- end }}{{- end }}
{{- if hasKey . "sidecarInjectorWebhook" }}{{- if and .sidecarInjectorWebhook (ne (toJson .sidecarInjectorWebhook) "{\"alwaysInjectSelector\":[],\"defaultTemplates\":[],\"enableNamespacesByDefault\":false,\"injectedAnnotations\":{},\"neverInjectSelector\":[],\"reinvocationPolicy\":\"Never\",\"rewriteAppHTTPProbe\":true,\"templates\":{}}") }}
- sidecarInjectorWebhook: there is no injection: pods join by the label istio.io/dataplane-mode.
{{- end }}{{- end }}
{{- if hasKey . "sidecarInjectorWebhookAnnotations" }}{{- if .sidecarInjectorWebhookAnnotations }}
- sidecarInjectorWebhookAnnotations: there is no injection.
{{- end }}{{- end }}
{{- with .taint }}
{{- if hasKey . "name" }}{{- if .name }}
- taint.name: no taint is used.
{{- end }}{{- end }}
{{- if hasKey . "namespace" }}{{- if .namespace }}
- taint.namespace: no taint is used.
{{- end }}{{- end }}
{{- end }}
{{- if hasKey . "telemetry" }}{{- if and .telemetry (ne (toJson .telemetry) "{\"enabled\":true}") (ne (toJson .telemetry) "{\"enabled\":true,\"v2\":{\"enabled\":true,\"prometheus\":{\"enabled\":true},\"stackdriver\":{\"enabled\":false}}}") }}
- telemetry: metrics are always reported; Telemetry objects change them.
{{- end }}{{- end }}
{{- if hasKey . "traceSampling" }}{{- if and .traceSampling (ne (toString .traceSampling) "1") }}
- traceSampling: name a provider in meshConfig.extensionProviders, and set the sampling in a Telemetry (docs/tasks/tracing.md).
{{- end }}{{- end }}
{{- if hasKey . "variant" }}{{- if and .variant (ne (toString .variant) "distroless") }}
- variant: there is one variant of each image, without a shell.
{{- end }}{{- end }}
{{- if hasKey . "ztunnel" }}{{- if .ztunnel }}
- ztunnel: install the chart ztunnel.
{{- end }}{{- end }}
{{- $read := list "ALLOWED_CIDRS_IN_JWKS_URIS" "BLOCKED_CIDRS_IN_JWKS_URIS" "CA_TRUSTED_NODE_ACCOUNTS" "CLUSTER_DOMAIN" "CLUSTER_ID" "DEFAULT_DESTINATION_RULE_EXPORT_TO" "DEFAULT_VIRTUAL_SERVICE_EXPORT_TO" "DEFAULT_WORKLOAD_CERT_TTL" "KARST_CONTROLZ_ADDR" "KARST_DATA_DIR" "KARST_GATEWAY_SECRETS" "KARST_GRPC_ADDR" "KARST_JWKS_CA" "KARST_MONITORING_ADDR" "KARST_PRIVILEGED_PARAMETERS" "KARST_READY_ADDR" "KARST_ROOT_CHECK" "KARST_SERVER_NAMES" "KARST_SOURCE" "KARST_WAYPOINT_IMAGE" "KARST_WAYPOINT_PULL_POLICY" "KARST_WAYPOINT_PULL_SECRETS" "KARST_WEBHOOK_ADDR" "LOG_FORMAT" "MAX_WORKLOAD_CERT_TTL" "MESH_CONFIG_MAP" "NETWORK" "POD_NAME" "REVISION" "REVISION_TAGS" "ROOT_NAMESPACE" "RUST_LOG" "TRUST_DOMAIN" "RUST_BACKTRACE" "TZ" }}
{{- range $name, $_ := .env }}{{- if not (has $name $read) }}
- env.{{ $name }}: the program does not read this variable.
{{- end }}{{- end }}
{{- with .global }}{{- with .logging }}{{- with .level }}{{- if not (has (. | trimPrefix "default:" | trimPrefix "all:") (list "" "trace" "debug" "info" "warn" "error")) }}
- global.logging.level: levels of single scopes are passed over, because the scopes are Istio's: set logLevel.
{{- end }}{{- end }}{{- end }}{{- end }}
{{- end }}
{{- end }}

{{- define "istiod.elsewhere" -}}
{{- $namespace := .Namespace }}
{{- with .Values }}
{{- if hasKey . "base" }}{{- if and .base (ne (toJson .base) "{\"enableIstioConfigCRDs\":true}") }}
- base: used by the chart base.
{{- end }}{{- end }}
{{- if hasKey . "defaultRevision" }}{{- if .defaultRevision }}
- defaultRevision: used by the chart base.
{{- end }}{{- end }}
{{- with .global }}
{{- if hasKey . "platform" }}{{- if and .platform (ne (toString .platform) "openshift") }}
- global.platform: used by the chart cni.
{{- end }}{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "istiod.refused" -}}
{{- $namespace := .Namespace }}
{{- with .Values }}
{{- if hasKey . "_internal_defaults_do_not_set" }}{{- if ._internal_defaults_do_not_set }}
- _internal_defaults_do_not_set: write its keys at the top, as in Istio.
{{- end }}{{- end }}
{{- if hasKey . "crlConfigMapName" }}{{- if and .crlConfigMapName (ne (toString .crlConfigMapName) "istio-ca-crl") }}
- crlConfigMapName: revocation lists are in ConfigMap istio-ca-crl.
{{- end }}{{- end }}
{{- if hasKey . "extraContainerArgs" }}{{- if .extraContainerArgs }}
- extraContainerArgs: arguments of Istio's pilot mean nothing here: set env.
{{- end }}{{- end }}
{{- with .global }}
{{- if hasKey . "caAddress" }}{{- if .caAddress }}
- global.caAddress: certificates come from istiod itself; to use an authority of your own, put an intermediate into Secret cacerts.
{{- end }}{{- end }}
{{- if hasKey . "caName" }}{{- if .caName }}
- global.caName: certificates come from istiod itself; to use an authority of your own, put an intermediate into Secret cacerts.
{{- end }}{{- end }}
{{- if hasKey . "configCluster" }}{{- if .configCluster }}
- global.configCluster: a control plane outside of the cluster is not supported: install the chart istiod in each cluster.
{{- end }}{{- end }}
{{- if hasKey . "externalIstiod" }}{{- if .externalIstiod }}
- global.externalIstiod: a control plane outside of the cluster is not supported: install the chart istiod in each cluster.
{{- end }}{{- end }}
{{- if hasKey . "istioNamespace" }}{{- if and .istioNamespace (ne (toString .istioNamespace) $namespace) }}
- global.istioNamespace: istiod serves the namespace that it is installed in: leave it out, or install the chart there (helm -n).
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
{{- with .istiodRemote }}
{{- if hasKey . "enabled" }}{{- if .enabled }}
- istiodRemote.enabled: a control plane outside of the cluster is not supported: install the chart istiod in each cluster.
{{- end }}{{- end }}
{{- if hasKey . "enabledLocalInjectorIstiod" }}{{- if .enabledLocalInjectorIstiod }}
- istiodRemote.enabledLocalInjectorIstiod: a control plane outside of the cluster is not supported: install the chart istiod in each cluster.
{{- end }}{{- end }}
{{- end }}
{{- with .meshConfig }}
{{- if hasKey . "ca" }}{{- if .ca }}
- meshConfig.ca: certificates come from istiod itself; to use an authority of your own, put an intermediate into Secret cacerts.
{{- end }}{{- end }}
{{- if hasKey . "caCertificates" }}{{- if .caCertificates }}
- meshConfig.caCertificates: roots beside istiod's are not supported: put them into root-cert.pem of Secret cacerts.
{{- end }}{{- end }}
{{- if hasKey . "certificates" }}{{- if .certificates }}
- meshConfig.certificates: no CertificateSigningRequests are made.
{{- end }}{{- end }}
{{- with .defaultConfig }}
{{- if hasKey . "caCertificatesPem" }}{{- if .caCertificatesPem }}
- meshConfig.defaultConfig.caCertificatesPem: roots beside istiod's are not supported: put them into root-cert.pem of Secret cacerts.
{{- end }}{{- end }}
{{- if hasKey . "privateKeyProvider" }}{{- if .privateKeyProvider }}
- meshConfig.defaultConfig.privateKeyProvider: keys are held by the proxies themselves.
{{- end }}{{- end }}
{{- end }}
{{- if hasKey . "enableAutoMtls" }}{{- if ne (toString .enableAutoMtls) "true" }}
- meshConfig.enableAutoMtls: pods of the mesh always call each other by mutual TLS.
{{- end }}{{- end }}
{{- if hasKey . "meshMTLS" }}{{- if and .meshMTLS (ne (toJson .meshMTLS) "{\"minProtocolVersion\":\"TLSV1_3\"}") (ne (toJson .meshMTLS) "{\"minProtocolVersion\":\"TLS_AUTO\"}") }}
- meshConfig.meshMTLS: connections between proxies are TLS 1.3.
{{- end }}{{- end }}
{{- if hasKey . "pathNormalization" }}{{- if and .pathNormalization (ne (toJson .pathNormalization) "{\"normalization\":\"DEFAULT\"}") (ne (toJson .pathNormalization) "{\"normalization\":\"BASE\"}") }}
- meshConfig.pathNormalization: paths are normalised as with BASE, and rules would match others than are meant.
{{- end }}{{- end }}
{{- if hasKey . "rootNamespace" }}{{- if and .rootNamespace (ne (toString .rootNamespace) $namespace) }}
- meshConfig.rootNamespace: policies for the whole mesh are those of istiod's namespace: leave it out.
{{- end }}{{- end }}
{{- if hasKey . "trustDomainAliases" }}{{- if .trustDomainAliases }}
- meshConfig.trustDomainAliases: identities of other trust domains are not accepted in this version, and policies would not match them.
{{- end }}{{- end }}
{{- end }}
{{- if hasKey . "pilot" }}{{- if .pilot }}
- pilot: write its keys at the top: this is the chart of pilot itself.
{{- end }}{{- end }}
{{- if hasKey . "platform" }}{{- if has (toString .platform) (list "openshift") }}
- platform: OpenShift needs SecurityContextConstraints that these charts do not have; nobody has tried it.
{{- end }}{{- end }}
{{- if hasKey . "profile" }}{{- if has (toString .profile) (list "openshift" "openshift-ambient" "remote" "ambient-windows") }}
- profile: there is no such profile: neither OpenShift, nor Windows, nor a control plane outside of the cluster is supported.
{{- end }}{{- end }}
{{- with .taint }}
{{- if hasKey . "enabled" }}{{- if .enabled }}
- taint.enabled: nobody would remove the taint from new nodes; none is needed: a new node's pods wait for the agent by its CNI plugin.
{{- end }}{{- end }}
{{- end }}
{{- end }}
{{- end }}
