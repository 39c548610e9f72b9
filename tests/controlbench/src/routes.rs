//! What routes cost to compile: all of them at once, and after an edit of one. The controller's own compilation, in this process,
//! without what is around it.

use crate::{
    objects::Size,
    rows::{Row, at_quantile},
};
use anyhow::{Context, Result, ensure};
use karst_controller::offline::Kept;
use karst_manifest::{State, parse, parse::Located};
use std::{fmt::Write, sync::Arc, time::Instant};

const VIRTUAL_SERVICES: usize = 5000;
const HTTP_ROUTES: usize = 20_000;

/// Half of the services have a VirtualService each, the others share the HTTPRoutes.
pub fn run(size: Size, edits: usize) -> Result<Vec<Row>> {
    ensure!(size.services > VIRTUAL_SERVICES, "--services must be more than {VIRTUAL_SERVICES}");
    ensure!((1..=VIRTUAL_SERVICES).contains(&edits), "--changes must be at least 1, at most {VIRTUAL_SERVICES}");
    println!("{VIRTUAL_SERVICES} VirtualServices, {HTTP_ROUTES} HTTPRoutes");
    let mut text = around(size)?;
    (0..VIRTUAL_SERVICES).for_each(|i| text.push_str(&virtual_service(size, i, 5)));
    (0..HTTP_ROUTES).for_each(|i| text.push_str(&http_route(size, i, 5)));
    let mut objects: Vec<Arc<Located>> = read(&text)?.into_iter().map(Arc::new).collect();
    let first = objects.len() - VIRTUAL_SERVICES - HTTP_ROUTES;
    let state = |objects: &[Arc<Located>]| State { objects: objects.to_vec(), ..State::default() };
    let mut kept = Kept::new()?;
    let all = state(&objects);
    let begun = Instant::now();
    kept.compile(&all);
    let compiled = begun.elapsed();
    let resources = kept.encode();
    let encoded = begun.elapsed();
    ensure!(kept.problems().is_empty(), "{}", kept.problems()[0]);
    println!("{} objects, {resources} resources", objects.len());
    let mut times = vec![];
    for k in 0..edits {
        let i = k * 7919;
        let (place, new) = match k % 2 {
            0 => (i % VIRTUAL_SERVICES, virtual_service(size, i % VIRTUAL_SERVICES, 6 + k)),
            _ => (VIRTUAL_SERVICES + i % HTTP_ROUTES, http_route(size, i % HTTP_ROUTES, 6 + k)),
        };
        objects[first + place] = Arc::new(read(&new)?.pop().context("an object")?);
        let all = state(&objects);
        let begun = Instant::now();
        kept.compile(&all);
        let changed = kept.encode();
        times.push(begun.elapsed().as_secs_f64() * 1e3);
        ensure!((1..10).contains(&changed), "an edit of one route has changed {changed} resources");
    }
    times.sort_by(f64::total_cmp);
    let mut alone = vec![];
    for k in 0..edits {
        let i = (k * 7919) % HTTP_ROUTES;
        let now = Arc::new(read(&http_route(size, i, 6 + edits + k))?.pop().context("an object")?);
        let before = std::mem::replace(&mut objects[first + VIRTUAL_SERVICES + i], now.clone());
        let begun = Instant::now();
        let changed = kept.step(Some(before), Some(now)).context("a route is not taken in alone")?;
        alone.push(begun.elapsed().as_secs_f64() * 1e3);
        ensure!((1..10).contains(&changed), "an edit of one route has changed {changed} resources");
    }
    alone.sort_by(f64::total_cmp);
    Ok(vec![
        ("all routes compiled", "s", compiled.as_secs_f64(), None),
        ("all routes compiled and encoded", "s", encoded.as_secs_f64(), Some(2.0)),
        ("an edit compiled and encoded, p50", "ms", at_quantile(&times, 0.5), None),
        ("an edit compiled and encoded, p99", "ms", at_quantile(&times, 0.99), Some(30.0)),
        ("an HTTPRoute taken in alone, p50", "ms", at_quantile(&alone, 0.5), None),
        ("an HTTPRoute taken in alone, p99", "ms", at_quantile(&alone, 0.99), None),
    ])
}

fn read(text: &str) -> Result<Vec<Located>> {
    parse::file("routes.yaml".as_ref(), text).map_err(|bad| anyhow::anyhow!("{}", bad[0]))
}

/// Namespaces with a waypoint each, services and pods.
fn around(size: Size) -> Result<String> {
    let mut text = String::new();
    for i in 0..size.namespaces {
        let labels = "{istio.io/dataplane-mode: ambient, istio.io/use-waypoint: waypoint}";
        write!(
            text,
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: team-{i}, labels: {labels}}}\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: waypoint, namespace: team-{i}}}\nspec: {{gatewayClassName: istio-waypoint, listeners: [{{name: mesh, port: 15008, protocol: HBONE}}]}}\n---\n"
        )?;
    }
    for i in 0..size.services {
        let (ip, _) = size.service(i);
        write!(
            text,
            "apiVersion: v1\nkind: Service\nmetadata: {{name: service-{i}, namespace: team-{}}}\nspec: {{clusterIP: {ip}, selector: {{app: service-{i}}}, ports: [{{name: http, port: 80, targetPort: 8080}}]}}\n---\n",
            i % size.namespaces
        )?;
    }
    for i in 0..size.pods {
        let p = size.place(i);
        write!(
            text,
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {}, namespace: {}, uid: uid-{i}, labels: {{app: {}}}, annotations: {{ambient.istio.io/redirection: enabled}}}}\nspec: {{nodeName: {}, serviceAccountName: {}}}\nstatus: {{phase: Running, podIP: {}, podIPs: [{{ip: {}}}], conditions: [{{type: Ready, status: 'True'}}]}}\n---\n",
            p.name, p.namespace, p.service, p.node, p.service, p.ip, p.ip
        )?;
    }
    Ok(text)
}

fn virtual_service(size: Size, i: usize, seconds: usize) -> String {
    let route = format!("route: [{{destination: {{host: service-{i}, port: {{number: 80}}}}}}]");
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: routes-{i}, namespace: team-{}}}\nspec: {{hosts: [service-{i}], http: [{{match: [{{headers: {{end-user: {{exact: jason}}}}}}], {route}}}, {{match: [{{uri: {{prefix: /api}}}}], timeout: {seconds}s, {route}}}, {{{route}}}]}}\n---\n",
        i % size.namespaces
    )
}

fn http_route(size: Size, i: usize, seconds: usize) -> String {
    let service = VIRTUAL_SERVICES + i % (size.services - VIRTUAL_SERVICES);
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: route-{i}, namespace: team-{}}}\nspec: {{parentRefs: [{{group: '', kind: Service, name: service-{service}, port: 80}}], rules: [{{matches: [{{path: {{type: PathPrefix, value: /part-{i}}}}}], timeouts: {{request: {seconds}s}}, backendRefs: [{{name: service-{service}, port: 80}}]}}]}}\n---\n",
        service % size.namespaces
    )
}
