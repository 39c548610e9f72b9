//! What is deployed for Gateways, and for which services.

use super::*;

/// A Gateway with this as the overlay of one of its objects, in its own ConfigMap or in that of its class.
fn overlaid(class: &str, of_class: bool, key: &str, overlay: &serde_json::Value) -> State {
    let listener = if class == "istio" { "port: 80, protocol: HTTP" } else { "port: 15008, protocol: HBONE" };
    let own = "infrastructure: {parametersRef: {group: '', kind: ConfigMap, name: options}}";
    let gateway = WAYPOINT
        .replace("STATUS", "")
        .replace("istio-waypoint", class)
        .replace("port: 15008, protocol: HBONE", listener)
        .replace("infrastructure: {labels: {team: x}}", if of_class { "infrastructure: {}" } else { own });
    let name = if of_class {
        format!("name: any, namespace: istio-system, labels: {{gateway.istio.io/defaults-for-class: {class}}}")
    } else {
        "name: options, namespace: a".into()
    };
    let data = serde_json::json!({ key: overlay.to_string() });
    let text = format!("{gateway}apiVersion: v1\nkind: ConfigMap\nmetadata: {{{name}}}\ndata: {data}\n");
    let objects = parse::file("t.yaml".as_ref(), &text).unwrap().into_iter().map(std::sync::Arc::new).collect();
    State { objects, ..State::default() }
}

/// One that cannot be understood closes; but nobody outside of the root namespace closes gateways of others by naming their class.
#[test]
fn a_class_of_gateways_is_named_in_the_root_namespace_only() {
    let waypoint = format!("{WAYPOINT}{}", BOUND.replace("NS", "a")).replace("STATUS", READY);
    for (ns, action, policies) in [("b", "ALLOW", 0), ("b", "DENY", 0), ("a", "DENY", 0), ("istio-system", "DENY", 1)] {
        let object = format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: {ns}}}\nspec: {{action: {action}, targetRefs: [{{group: gateway.networking.k8s.io, kind: GatewayClass, name: istio-waypoint}}], rules: [{{}}]}}\n"
        );
        let (m, problems) = run(&(waypoint.clone() + &object));
        let found = m.access.get("a/s.a.svc.cluster.local").map_or(0, |a| a.policies.len());
        assert_eq!((found, problems.len()), (policies, 1 - policies), "{ns} {action}");
    }
}

#[test]
fn waypoints_bind_by_label() {
    let text = format!(
        "{POD}apiVersion: v1\nkind: Namespace\nmetadata: {{name: a, labels: {{istio.io/use-waypoint: w}}}}\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: w, namespace: a}}\nspec: {{gatewayClassName: istio-waypoint}}\nstatus: {{addresses: [{{type: IPAddress, value: 10.0.0.50}}]}}\n---\napiVersion: v1\nkind: Service\nmetadata: {{name: s, namespace: a}}\nspec: {{clusterIP: 10.96.0.1}}\n---\napiVersion: v1\nkind: Service\nmetadata: {{name: t, namespace: a, labels: {{istio.io/use-waypoint: none}}}}\nspec: {{clusterIP: 10.96.0.2}}\n"
    );
    let (m, _) = run(&text);
    assert!(m.services["a/s.a.svc.cluster.local"].waypoint.is_some());
    assert!(m.services["a/t.a.svc.cluster.local"].waypoint.is_none());
    assert!(m.workloads["Kubernetes//Pod/a/p"].waypoint.is_none(), "waypoint-for is service by default");
}

#[test]
fn waypoints_are_deployed_as_mesh_and_revision_say() {
    let text = WAYPOINT.replace("STATUS", READY);
    let objects = parse::file("t.yaml".as_ref(), &text).unwrap().into_iter().map(std::sync::Arc::new).collect();
    let mesh_config = karst_manifest::MeshConfig::read("defaultConfig: {concurrency: 3}").unwrap();
    let mut state = State { objects, ..State::default() };
    let revision = Revision { name: "canary".into(), tags: vec![] };
    let mut c = Compiler::new(Mesh { revision, ..mesh() });
    let template = Template { pull_secrets: vec!["pull".into()], ..Template::default() };
    let mut deployed = |state: &State| {
        c.update(state);
        let writes = c.writes(state, &template, None, "2026-01-01T00:00:00Z");
        let (_, fields) = writes.objects.into_iter().find(|(r, _)| r.kind == "Deployment").unwrap();
        let pod = fields["spec"]["template"]["spec"].clone();
        let env = pod["containers"][0]["env"].as_array().unwrap().clone();
        let value = move |name: &str| env.iter().find(|e| e["name"] == name).map(|e| e["value"].clone());
        (value("XDS_ADDRESS"), value("KARST_WORKER_THREADS"), pod["imagePullSecrets"].clone())
    };
    let address = Some(serde_json::json!("istiod-canary.istio-system.svc:15012"));
    let secrets = serde_json::json!([{ "name": "pull" }]);
    assert_eq!(deployed(&state), (address.clone(), None, secrets.clone()));
    // It is taken in though no object has changed.
    state.mesh_config = std::sync::Arc::new(mesh_config);
    assert_eq!(deployed(&state), (address, Some(serde_json::json!("3")), secrets));
}

#[test]
fn a_waypoint_gets_what_it_needs_once() {
    let kinds = |w: &Writes| w.objects.iter().map(|(r, _)| r.to_string()).collect::<Vec<_>>();
    let classes = ["istio-waypoint", "karst-waypoint", "istio", "karst"].map(|c| format!("GatewayClass {c}"));
    assert_eq!(kinds(&written("")), classes);
    let w = written(&WAYPOINT.replace("STATUS", ""));
    assert_eq!(kinds(&w)[4..], ["ServiceAccount a/w", "Deployment a/w", "Service a/w"]);
    let (_, d) = &w.objects[5];
    assert_eq!(d["metadata"]["ownerReferences"][0]["uid"], "u");
    assert_eq!(d["metadata"]["labels"]["team"], "x");
    let pod = &d["spec"]["template"];
    assert_eq!(pod["metadata"]["labels"]["istio.io/dataplane-mode"], "none");
    assert_eq!(pod["spec"]["containers"][0]["image"], "hub/waypoint:1");
    assert_eq!(
        conditions(&w),
        ["Gateway a/w: Accepted True Accepted", "Gateway a/w: Programmed False AddressNotAssigned"]
    );
    // What is there as it should be is left alone; what somebody else made, too.
    let made = |available: u32| {
        let digest = d["metadata"]["annotations"]["gateway.karst.io/digest"].as_str().unwrap();
        let meta = format!(
            "{{name: w, namespace: a, labels: {{gateway.istio.io/managed: x}}, annotations: {{gateway.karst.io/digest: '{digest}'}}}}"
        );
        WAYPOINT.replace("STATUS", "")
            + &format!(
                "apiVersion: apps/v1\nkind: Deployment\nmetadata: {meta}\nstatus: {{availableReplicas: {available}}}\n---\napiVersion: v1\nkind: Service\nmetadata: {meta}\nspec: {{clusterIP: 10.96.0.9}}\n"
            )
    };
    assert_eq!(kinds(&written(&made(0))), classes);
    let foreign = written(&made(1).replace("gateway.istio.io/managed", "mine"));
    assert_eq!(kinds(&foreign), classes);
    assert!(conditions(&foreign).contains(&"Gateway a/w: Programmed False AddressNotUsable".to_string()));
    // One that somebody else runs: its address is what the Gateway says.
    let elsewhere = WAYPOINT
        .replace("STATUS", "")
        .replace("listeners:", "addresses: [{type: Hostname, value: w.other.example}], listeners:");
    let elsewhere = written(&elsewhere);
    assert_eq!(kinds(&elsewhere), classes);
    let status = &elsewhere.statuses.iter().find(|s| s.to.kind == "Gateway").unwrap().status;
    assert_eq!(status["addresses"][0]["value"], "w.other.example");
    assert!(conditions(&elsewhere).contains(&"Gateway a/w: Programmed True Programmed".to_string()));
    // Ready with its first pod that is available.
    let ready = written(&made(1));
    assert!(conditions(&ready).contains(&"Gateway a/w: Programmed True Programmed".to_string()));
    let address = &ready.statuses.iter().find(|s| s.to.kind == "Gateway").unwrap().status["addresses"];
    assert_eq!(address[0]["value"], "w.a.svc.cluster.local");
}

/// `parametersRef`, of waypoints as of other gateways.
#[test]
fn parameters_change_what_is_deployed() {
    const MAP: &str = "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: options, namespace: a}\ndata:\n  deployment: 'spec: {replicas: 3, template: {spec: {containers: [{name: istio-proxy, resources: {requests: {cpu: 222m}}}]}}}'\n  service: '{metadata: {labels: {gateway.istio.io/managed: null}}, spec: {externalTrafficPolicy: Local}}'\n  horizontalPodAutoscaler: 'spec: {minReplicas: 2, maxReplicas: 5}'\n  podDisruptionBudget: 'spec: {minAvailable: 1}'\n";
    let with = |class: &str, kind: &str, map: &str| {
        let parameters = format!(
            "infrastructure: {{parametersRef: {{group: '', kind: {kind}, name: options}}, labels: {{team: x}}}}"
        );
        let listener = if class == "istio" { "port: 80, protocol: HTTP" } else { "port: 15008, protocol: HBONE" };
        WAYPOINT
            .replace("STATUS", "")
            .replace("istio-waypoint", class)
            .replace("infrastructure: {labels: {team: x}}", &parameters)
            .replace("port: 15008, protocol: HBONE", listener)
            + map
    };
    for (class, name) in [("istio-waypoint", "w"), ("istio", "w-istio")] {
        let w = written(&with(class, "ConfigMap", MAP));
        let kinds: Vec<String> = w.objects[4..].iter().map(|(r, _)| r.to_string()).collect();
        let all = ["ServiceAccount", "HorizontalPodAutoscaler", "PodDisruptionBudget", "Deployment", "Service"];
        assert_eq!(kinds, all.map(|k| format!("{k} a/{name}")));
        let of = |kind: &str| &w.objects.iter().find(|(r, _)| r.kind == kind).unwrap().1;
        let d = of("Deployment");
        let container = &d["spec"]["template"]["spec"]["containers"][0];
        assert_eq!((&d["spec"]["replicas"], &container["resources"]["requests"]["cpu"]), (&3.into(), &"222m".into()));
        assert_eq!(container["resources"]["requests"]["memory"], "128Mi", "what is not said stays");
        let hpa = &of("HorizontalPodAutoscaler")["spec"];
        assert_eq!((&hpa["scaleTargetRef"]["name"], &hpa["maxReplicas"]), (&name.into(), &5.into()));
        assert_eq!(of("PodDisruptionBudget")["spec"]["selector"]["matchLabels"][GATEWAY_NAME], "w");
        assert!(of("Service")["metadata"]["labels"][MANAGED].is_string(), "it stays ours");
        assert_eq!(of("Service")["spec"]["externalTrafficPolicy"], "Local");
        assert_eq!(of("Service")["spec"]["ports"][0]["name"], "status-port", "what is not said stays");
        // What is asked for no more is removed, and before that nothing is said to be there.
        let made = d["metadata"]["annotations"].as_object().unwrap();
        let annotations = made.iter().map(|(k, v)| format!("{k}: {v}")).collect::<Vec<_>>().join(", ");
        let there = format!(
            "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {name}, namespace: a, labels: {{gateway.istio.io/managed: x}}, annotations: {{{annotations}}}}}\n"
        );
        let less = MAP.replace("horizontalPodAutoscaler", "unknown");
        let w = written(&(with(class, "ConfigMap", &less) + &there));
        let removed: Vec<String> = w.removed.iter().map(|(r, owner)| format!("{r} {owner}")).collect();
        assert_eq!(removed, [format!("HorizontalPodAutoscaler a/{name} u")]);
        assert!(w.objects.iter().all(|(r, v)| r.kind == "GatewayClass" || deploy::owner(v) == Some("u")));
        // What cannot be read changes nothing, and is told.
        for (kind, map) in
            [("ConfigMap", ""), ("Secret", MAP), ("ConfigMap", &MAP.replace("'spec: {replicas", "'spec: [{"))]
        {
            let w = written(&with(class, kind, map));
            assert_eq!(w.objects.len(), 4, "{kind} {map}");
            let all = conditions(&w);
            assert!(all.contains(&"Gateway a/w: Accepted False InvalidParameters".to_string()), "{all:#?}");
            assert!(all.contains(&"Gateway a/w: Programmed False Invalid".to_string()), "{all:#?}");
        }
    }
    // Of a class, for all of its Gateways.
    let class = MAP.replace(
        "name: options, namespace: a",
        "name: any, namespace: istio-system, labels: {gateway.istio.io/defaults-for-class: istio-waypoint}",
    );
    let w = written(&(WAYPOINT.replace("STATUS", "") + &class));
    assert!(w.objects.iter().any(|(r, v)| r.kind == "Deployment" && v["spec"]["replicas"] == 3));
}

/// Everything odd everywhere: nothing ends the process, and what is deployed stays ours, or the Gateway says what is wrong.
#[test]
fn no_parameters_harm_the_controller() {
    use serde_json::{Value, json};
    let odd = [
        json!(null),
        json!("x"),
        json!(""),
        json!(1),
        json!(true),
        json!([]),
        json!(["a"]),
        json!([[{}]]),
        json!([null]),
        json!({}),
        json!({ "a": "b" }),
        json!({ "a": { "b": [1] } }),
        json!({ "$patch": "replace" }),
        json!({ "$patch": "delete" }),
        json!({ "$patch": ["x"] }),
        json!({ "$retainKeys": ["a"] }),
        json!({ "$deleteFromPrimitiveList/a": 1 }),
        json!([{ "$patch": "replace" }, { "name": null }]),
    ];
    let paths = [
        "",
        "metadata",
        "metadata.labels",
        "metadata.annotations",
        "metadata.labels.gateway.istio.io/managed",
        "metadata.ownerReferences",
        "spec",
        "spec.selector",
        "spec.ports",
        "spec.template",
        "spec.template.metadata",
        "spec.template.metadata.labels",
        "spec.template.spec",
        "spec.template.spec.containers",
        "spec.template.spec.volumes",
        "spec.template.spec.securityContext",
        "secrets",
        "$patch",
        "$retainKeys",
    ];
    let template = Template { image: "i".into(), pull_policy: "Never".into(), ..Template::default() };
    let mut refused = 0;
    for (path, value, of_class) in
        paths.iter().flat_map(|p| odd.iter().flat_map(move |v| [(p, v, false), (p, v, true)]))
    {
        let steps: Vec<&str> = match path.split_once(".labels.") {
            Some((_, key)) => vec!["metadata", "labels", key],
            None => path.split('.').filter(|s| !s.is_empty()).collect(),
        };
        let overlay = steps.iter().rev().fold(value.clone(), |inner, step| json!({ *step: inner }));
        for (class, key) in [("istio", "deployment"), ("istio-waypoint", "service"), ("istio", "podDisruptionBudget")] {
            let w = written_with(&overlaid(class, of_class, key, &overlay), &template, None);
            let made: Vec<_> = w.objects.iter().filter(|(r, _)| r.kind != "GatewayClass").collect();
            let said = conditions(&w).contains(&"Gateway a/w: Accepted False InvalidParameters".to_string());
            assert!(said == made.is_empty(), "{key}: {overlay}: {made:?}");
            refused += usize::from(said);
            for (r, v) in made {
                let text = |of: &str, key: &str| v["metadata"][of].get(key).is_some_and(Value::is_string);
                assert_eq!(deploy::owner(v), Some("u"), "{r}: {overlay}");
                assert!(text("labels", MANAGED) && text("annotations", "gateway.karst.io/digest"), "{r}: {overlay}");
            }
        }
    }
    assert!((200..1_900).contains(&refused), "{refused}");
}

/// What a ConfigMap's writer does not get by it, unless who runs the mesh says so; parameters of a class are his own.
#[test]
fn parameters_give_no_rights() {
    let template = Template { image: "i".into(), pull_policy: "Never".into(), ..Template::default() };
    let of = |key: &str, overlay: &str, of_class: bool, privileged: bool| {
        let overlay: serde_json::Value = serde_yaml_ng::from_str(overlay).unwrap();
        let mut c = Compiler::new(Mesh { privileged_parameters: privileged, ..mesh() });
        let state = overlaid("istio", of_class, key, &overlay);
        c.update(&state);
        let w = c.writes(&state, &template, None, "2026-01-01T00:00:00Z");
        let made = w.objects.iter().any(|(r, _)| r.kind == "Deployment");
        let said = conditions(&w).contains(&"Gateway a/w: Accepted False InvalidParameters".to_string());
        assert!(made != said, "{key}: {overlay}");
        made
    };
    let container = |what: &str| format!("containers: [{{name: istio-proxy, {what}}}]");
    let security = |what: &str| container(&format!("securityContext: {{{what}}}"));
    for pod in [
        "serviceAccountName: admin",
        "serviceAccountName: null",
        "serviceAccount: admin",
        "automountServiceAccountToken: true",
        "automountServiceAccountToken: null",
        "nodeName: n",
        "hostNetwork: true",
        "hostPID: true",
        "hostIPC: true",
        "securityContext: {sysctls: [{name: net.core.somaxconn, value: '1'}]}",
        "securityContext: {runAsUser: 0}",
        "securityContext: {seLinuxOptions: {type: spc_t}}",
        "volumes: [{name: v, hostPath: {path: /}}]",
        "volumes: [{name: v, secret: {secretName: s}}]",
        "volumes: [{name: v, projected: {sources: [{secret: {name: s}}]}}]",
        "volumes: [{name: v, projected: {sources: [{serviceAccountToken: {path: t}}]}}]",
        "initContainers: [{name: i, image: x}]",
        "$patch: replace",
        &container("$patch: replace, image: x"),
        &container("ports: [{containerPort: 80, hostPort: 80}]"),
        &container("env: [{name: A, valueFrom: {secretKeyRef: {name: s, key: k}}}]"),
        &container("envFrom: [{secretRef: {name: s}}]"),
        &container("securityContext: null"),
        &security("privileged: true"),
        &security("allowPrivilegeEscalation: true"),
        &security("allowPrivilegeEscalation: null"),
        &security("runAsNonRoot: false"),
        &security("runAsUser: 0"),
        &security("procMount: Unmasked"),
        &security("seccompProfile: {type: Unconfined}"),
        &security("capabilities: {add: [SYS_ADMIN]}"),
        &security("capabilities: {drop: [NET_RAW]}"),
    ] {
        let overlay = format!("spec: {{template: {{spec: {{{pod}}}}}}}");
        let is = [(false, false), (true, false), (false, true)].map(|(c, p)| of("deployment", &overlay, c, p));
        assert_eq!(is, [false, true, true], "{pod}");
    }
    for (key, overlay) in [
        ("deployment", "spec: {template: {metadata: {labels: {gateway.networking.k8s.io/gateway-name: other}}}}"),
        ("deployment", "spec: {selector: {matchLabels: {app: x}}}"),
        ("service", "spec: {selector: {app: x}}"),
        ("service", "spec: {externalIPs: [10.0.0.1]}"),
        ("horizontalPodAutoscaler", "spec: {scaleTargetRef: {name: other}}"),
        ("podDisruptionBudget", "spec: {selector: {matchLabels: {app: x}}}"),
    ] {
        let is = [(false, false), (true, false), (false, true)].map(|(c, p)| of(key, overlay, c, p));
        assert_eq!(is, [false, true, true], "{overlay}");
    }
    for pod in [
        "nodeSelector: {a: b}, tolerations: [{operator: Exists}], priorityClassName: p, hostNetwork: false",
        "volumes: [{name: v, configMap: {name: c}}, {name: e, emptyDir: {}}], imagePullSecrets: [{name: p}]",
        "securityContext: {fsGroup: 1, runAsNonRoot: true}",
        &container("image: other, args: [x], env: [{name: A, value: b}], resources: {limits: {cpu: 4}}"),
        &security("readOnlyRootFilesystem: false, runAsUser: 1000"),
        "containers: [{name: more, image: m, securityContext: {allowPrivilegeEscalation: false, runAsNonRoot: true, capabilities: {drop: [ALL]}, seccompProfile: {type: RuntimeDefault}}}]",
    ] {
        assert!(of("deployment", &format!("spec: {{template: {{spec: {{{pod}}}}}}}"), false, false), "{pod}");
    }
}

/// What PodSecurity's level `restricted` asks for (Kubernetes 1.34), and that no token is there but the one that is used.
#[test]
fn what_is_deployed_passes_pod_security_restricted() {
    let gateway = WAYPOINT
        .replace("istio-waypoint", "istio")
        .replace("name: mesh, port: 15008, protocol: HBONE", "name: http, port: 80, protocol: HTTP");
    for (text, sysctls) in
        [(WAYPOINT, vec![]), (&*gateway, vec![("net.ipv4.ip_unprivileged_port_start".to_string(), "0".to_string())])]
    {
        let w = written(&text.replace("STATUS", ""));
        let (_, d) = w.objects.iter().find(|(r, _)| r.kind == "Deployment").unwrap();
        let pod = &d["spec"]["template"]["spec"];
        let has = |s: &serde_json::Value| (s["name"].as_str().unwrap().into(), s["value"].as_str().unwrap().into());
        let set = pod["securityContext"]["sysctls"].as_array().into_iter().flatten().map(has).collect::<Vec<_>>();
        assert_eq!(set, sysctls, "a port below 1024 needs no capability; this sysctl is one that every pod may set");
        for shared in ["hostNetwork", "hostPID", "hostIPC", "initContainers"] {
            assert!(pod[shared].is_null(), "{shared}");
        }
        for c in pod["containers"].as_array().unwrap() {
            let s = &c["securityContext"];
            for (key, wanted) in [
                ("privileged", false),
                ("allowPrivilegeEscalation", false),
                ("runAsNonRoot", true),
                ("readOnlyRootFilesystem", true),
            ] {
                assert_eq!(s[key], wanted, "{key}");
            }
            assert!(s["runAsUser"].as_u64().is_some_and(|u| u > 0));
            assert_eq!(s["capabilities"], serde_json::json!({ "drop": ["ALL"] }));
            assert_eq!(s["seccompProfile"]["type"], "RuntimeDefault");
            assert!(c["ports"].as_array().unwrap().iter().all(|p| p["hostPort"].is_null()));
        }
        assert_eq!(pod["automountServiceAccountToken"], false);
        let mut tokens = vec![];
        for v in pod["volumes"].as_array().unwrap() {
            assert!(v["configMap"].is_object() || v["projected"].is_object(), "{v}");
            let sources = v["projected"]["sources"].as_array().into_iter().flatten();
            tokens.extend(sources.filter_map(|s| s["serviceAccountToken"]["audience"].as_str().map(String::from)));
        }
        assert_eq!(tokens, ["istio-ca"], "a token that the API server does not take");
    }
}
