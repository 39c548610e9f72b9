//! Manifests of a small mesh, in parts: each begins where another may end.

/// A service `app/shop` with a pod, which is to have the waypoint `w`.
pub const SHOP: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: app, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Pod
metadata: {name: shop-1, namespace: app, labels: {app: shop}}
spec: {nodeName: n, serviceAccountName: shop}
status: {phase: Running, podIPs: [{ip: 10.9.0.1}], conditions: [{type: Ready, status: 'True'}]}
---
apiVersion: v1
kind: Service
metadata: {name: shop, namespace: app, labels: {istio.io/use-waypoint: w}}
spec: {clusterIP: 10.96.0.1, selector: {app: shop}, ports: [{name: http, port: 80}]}
";

/// The waypoint `w`, and a gateway `edge` with a pod and a service.
pub const GATEWAYS: &str = "---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: w, namespace: app}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
status: {addresses: [{type: IPAddress, value: 10.96.0.2}]}
---
apiVersion: v1
kind: Pod
metadata: {name: edge-1, namespace: app, labels: {app: edge, gateway.networking.k8s.io/gateway-name: edge}}
spec: {nodeName: n, serviceAccountName: edge}
status: {phase: Running, podIPs: [{ip: 10.9.0.2}], conditions: [{type: Ready, status: 'True'}]}
---
apiVersion: v1
kind: Service
metadata: {name: edge, namespace: app}
spec: {clusterIP: 10.96.0.3, selector: {app: edge}, ports: [{name: http, port: 80}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge, namespace: app}
spec: {gatewayClassName: istio, listeners: [{name: http, port: 80, protocol: HTTP}]}
";
