//! The manifests of a soak.

/// Namespaces and services.
pub const OBJECTS: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: app, labels: {istio.io/dataplane-mode: ambient}}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: edge}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: out}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: app}\nspec: {clusterIP: 10.96.0.10, selector: {part: web}, ports: [{name: tcp, port: 80, targetPort: 8080}]}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: shop, namespace: app, labels: {istio.io/use-waypoint: waypoint}}\nspec: {clusterIP: 10.96.1.1, selector: {part: shop}, ports: [{name: http, port: 80, targetPort: 8080}]}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: shop-v1, namespace: app}\nspec: {clusterIP: 10.96.1.2, selector: {version: v1}, ports: [{name: http, port: 80, targetPort: 8080}]}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: shop-v2, namespace: app}\nspec: {clusterIP: 10.96.1.3, selector: {version: v2}, ports: [{name: http, port: 80, targetPort: 8080}]}\n";
/// Nothing is served to the intruder.
pub const FORBIDDEN: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: intruder, namespace: app}\nspec: {action: DENY, rules: [{from: [{source: {principals: [cluster.local/ns/app/sa/intruder]}}]}]}\n";
/// The gateway, and its route to the shop.
pub const EDGE: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: gateway, namespace: edge}\nspec: {gatewayClassName: istio, listeners: [{name: web, port: 80, protocol: HTTP, allowedRoutes: {namespaces: {from: All}}}]}\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: edge, namespace: app}\nspec: {parentRefs: [{name: gateway, namespace: edge}], rules: [{backendRefs: [{name: shop, port: 80}]}]}\n";

/// A policy that denies what nobody calls: it is compiled, sent, and asked for each connection.
pub fn policy() -> &'static str {
    "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: churn, namespace: app}\nspec: {action: DENY, rules: [{to: [{operation: {ports: ['9999']}}]}]}\n"
}

/// The route of `shop`: so many per cent to its first release.
pub fn route(weight: u8) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: shop, namespace: app}}\nspec: {{parentRefs: [{{group: '', kind: Service, name: shop}}], rules: [{{backendRefs: [{{name: shop-v1, port: 80, weight: {weight}}}, {{name: shop-v2, port: 80, weight: {}}}]}}]}}\n",
        100 - weight.min(100)
    )
}
