//! The manifests of a soak.

/// Namespaces and services.
pub const OBJECTS: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: app, labels: {istio.io/dataplane-mode: ambient}}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: edge}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: out}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: app}\nspec: {clusterIP: 10.96.0.10, selector: {part: web}, ports: [{name: tcp, port: 80, targetPort: 8080}]}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: shop, namespace: app, labels: {istio.io/use-waypoint: waypoint}}\nspec: {clusterIP: 10.96.1.1, selector: {part: shop}, ports: [{name: http, port: 80, targetPort: 8080}]}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: shop-v1, namespace: app}\nspec: {clusterIP: 10.96.1.2, selector: {version: v1}, ports: [{name: http, port: 80, targetPort: 8080}]}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: shop-v2, namespace: app}\nspec: {clusterIP: 10.96.1.3, selector: {version: v2}, ports: [{name: http, port: 80, targetPort: 8080}]}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: calm-shop, namespace: app, labels: {istio.io/use-waypoint: calm-waypoint}}\nspec: {clusterIP: 10.96.1.4, selector: {part: calm-shop}, ports: [{name: http, port: 80, targetPort: 8080}]}\n";
/// Nothing is served to the intruder.
pub const FORBIDDEN: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: intruder, namespace: app}\nspec: {action: DENY, rules: [{from: [{source: {principals: [cluster.local/ns/app/sa/intruder]}}]}]}\n";
/// The gateway, and its route to the shop.
pub const EDGE: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: gateway, namespace: edge}\nspec: {gatewayClassName: istio, listeners: [{name: web, port: 80, protocol: HTTP, allowedRoutes: {namespaces: {from: All}}}]}\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: edge, namespace: app}\nspec: {parentRefs: [{name: gateway, namespace: edge}], rules: [{backendRefs: [{name: shop, port: 80}]}]}\n";
/// The port that is served while the policy below is not in force.
pub const GATE: u16 = 8081;
/// Answers tell by it which route they have come by.
pub const ROUTED: &str = "x-route";

/// A policy that closes the gate: a port of the calm server that nobody calls but who looks whether it is obeyed.
pub fn policy() -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: churn, namespace: app}}\nspec: {{selector: {{matchLabels: {{part: calm}}}}, action: DENY, rules: [{{to: [{{operation: {{ports: ['{GATE}']}}}}]}}]}}\n"
    )
}

/// The routes of both shops, with a number: so many per cent of `shop` to its first release.
pub fn routes(weight: u8, number: u64) -> String {
    let route = |service: &str, backends: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {service}, namespace: app}}\nspec: {{parentRefs: [{{group: '', kind: Service, name: {service}}}], rules: [{{filters: [{{type: ResponseHeaderModifier, responseHeaderModifier: {{set: [{{name: {ROUTED}, value: '{number}'}}]}}}}], backendRefs: [{backends}]}}]}}\n"
        )
    };
    let weight = weight.min(100);
    let shops =
        format!("{{name: shop-v1, port: 80, weight: {weight}}}, {{name: shop-v2, port: 80, weight: {}}}", 100 - weight);
    format!("{}---\n{}", route("shop", &shops), route("calm-shop", "{name: calm-shop, port: 80}"))
}
