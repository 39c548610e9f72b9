#!/usr/bin/env python3
"""The names pass (issue 15, order 1), mechanically. Text only: no cargo.

    names.py ROOT              dry run: what each rule would change, in counts; collisions; rules that are done already
    names.py ROOT --apply      does it (files with git mv, in a git tree)
    names.py ROOT --only crew,route   some groups;  --list: the groups
    names.py ROOT --drop call,objects leaves groups out
    names.py ROOT --group-diff        applies nothing; prints the changed lines of each group

Code is read by tokens (rustlex.py): strings, wire names, metrics, labels, flags and log texts are never touched. Comments
only inside backticks (a code span or a [`link`]). A rule is skipped when its old definition is not there any more, so a
second run changes nothing. Afterwards: cargo fmt (lines have become longer), clippy, tests.
"""
import argparse, collections, fnmatch, os, re, subprocess, sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from rustlex import lex

W = "waypoint/src/"
Z = "ztunnel/src/"
C = "controller/src/"
V = "controller/src/convert/"
P = "crates/proxy/src/"

RULES = []
MOVES = []  # (group, old path, new path, old module, new module, crate dir, external crate name)


def rule(group, kind, old, new, home, scope=(), **more):
    """kind: type | method | fn | any | field | variant. home: the file that defines it; scope: globs besides."""
    more.setdefault("not_after", ())
    RULES.append(dict(group=group, kind=kind, old=old, new=new, home=home, scope=[home, *scope], **more))


def edit(group, home, old, new):
    """An exact piece of code, in one file, every time it is there."""
    RULES.append(dict(group=group, kind="edit", old=old, new=new, home=home, scope=[home]))


def move(group, old, new, oldmod, newmod, crate, extern=None, skip=()):
    MOVES.append(dict(group=group, old=old, new=new, oldmod=oldmod, newmod=newmod, crate=crate, extern=extern, skip=skip))


# --- crates/proxy/crew.rs: the workers -------------------------------------------------------------------------------
ws = [W + "*.rs", Z + "*.rs"]
rule("crew", "type", "Crew", "WorkerPool", P + "crew.rs", ws)
rule("crew", "type", "Member", "WorkerHandle", P + "crew.rs")
rule("crew", "type", "Running", "ConnectionGuard", P + "crew.rs", [W + "worker.rs", Z + "worker.rs"])
rule("crew", "any", "ORDERS", "COMMANDS", P + "crew.rs", probe=r"const ORDERS\b")
rule("crew", "any", "orders", "commands", P + "crew.rs", [Z + "worker.rs", Z + "admin.rs", Z + "control.rs"], probe=r"fn orders\b")
rule("crew", "method", "hand", "dispatch", P + "crew.rs", [W + "worker.rs", Z + "worker.rs"])
rule("crew", "method", "other", "pick_less_loaded", P + "crew.rs", [W + "worker.rs", Z + "worker.rs"])
rule("crew", "fn", "idlest", "least_loaded", P + "crew.rs")
rule("crew", "any", "crew", "workers", W + "worker.rs", [W + "lib.rs", W + "testing.rs", Z + "lib.rs", Z + "worker.rs", Z + "admin.rs", Z + "control.rs"],
     probe=r"pub crew:", not_path=True)
rule("crew", "type", "Order", "Command", Z + "worker.rs", [Z + "control.rs", Z + "admin.rs"], not_after=("dns",))
rule("crew", "any", "order", "run_command", Z + "worker.rs", probe=r"fn order\(", shape="method")
move("crew", P + "crew.rs", P + "workers.rs", "crew", "workers", "crates/proxy/src/", "karst_proxy")

for a, b in [("/// Orders that wait for a worker.", "/// Commands that may wait for a worker."),
             ("    /// A crew of `n`, and what each of them receives.", "    /// A pool of `n` workers, and what each of them receives."),
             ("    /// Everybody's orders.", "    /// The command channel of each worker.")]:
    edit("crew", P + "crew.rs", a, b)
edit("crew", Z + "worker.rs", "/// Orders for a worker.", "/// Commands for a worker.")
edit("crew", Z + "worker.rs", "/// Which of the workers it is.", "/// Its number in the pool.")
edit("crew", Z + "worker.rs", "/// Which of the crew it is.", "/// Its number in the pool.")
edit("crew", P + "lib.rs", "[`crew`]", "[`workers`]")
# --- convert/routes/gateways.rs: listeners of gateways ---------------------------------------------------------------
G = V + "routes/gateways.rs"
gs = [V + "*.rs", V + "routes/*.rs"]
rule("gateways", "type", "Front", "GatewayListener", G, gs)
rule("gateways", "type", "Fronts", "GatewayListeners", G, gs)
rule("gateways", "type", "Place", "VirtualHostScope", G, gs)
rule("gateways", "type", "Of", "ListenerParent", G)
rule("gateways", "any", "of", "parent", G, probe=r"^    of: (Of|ListenerParent),", shape="field_or_local_in", fns=("new",))
rule("gateways", "any", "ends_tls", "terminates_tls", G, [V + "routes/virtual_service.rs"], probe=r"ends_tls: bool")
edit("gateways", G, "    modern: bool,\n", "    min_tls13: bool,\n")
edit("gateways", G, "            modern: false,\n", "            min_tls13: false,\n")
edit("gateways", G, "modern: self.modern,", "modern: self.min_tls13,")
edit("gateways", G, "f.modern = ", "f.min_tls13 = ")
rule("gateways", "any", "fronts", "listeners", G, gs, probe=r"fronts: Vec<usize>", not_files=[V + "tests.rs"])
rule("gateways", "any", "front", "listener", G, [V + "routes/virtual_service.rs", V + "gateway_status.rs", V + "route_status.rs", V + "routes/mod.rs"],
     probe=r"^    front: usize", not_call=True)
rule("gateways", "any", "places", "scopes", G, [V + "routes/mod.rs"], probe=r"places: Vec<(Place|VirtualHostScope)>")
rule("gateways", "any", "place", "scope", G, probe=r"let place = places|let scope = scopes|for place in|for scope in")

for a, b in [("    /// Places among all fronts.", "    /// Indices into all listeners."), ("/// A front at a pod.", "/// A listener at a pod."),
             ("/// A front whose port", "/// A listener whose port"), ("// In the order of the fronts,", "// In the order of the listeners,")]:
    edit("gateways", G, a, b)
edit("gateways", V + "routes/virtual_service.rs", "connections of a front,", "connections of a listener,")

# --- waypoint/serve.rs, access.rs: who calls what --------------------------------------------------------------------
ww = [W + "*.rs", W + "*/*.rs"]
rule("downstream", "type", "Call", "Downstream", W + "serve.rs", ww)
rule("downstream", "type", "Called", "DownstreamTarget", W + "serve.rs", ww)
rule("downstream", "type", "Hello", "ClientHello", W + "serve.rs", [W + "conns.rs", W + "tests.rs", W + "upstream.rs"])
rule("call", "any", "call", "downstream", W + "serve.rs", ww, probe=r"call: &Call|call: &Downstream", not_def=True, not_callee=True, not_closure=True, captures=True)
rule("downstream", "any", "called", "target", W + "serve.rs",
     [W + f for f in ("conns.rs", "edge.rs", "tests.rs", "http.rs", "upstream.rs", "record/tests.rs")],
     probe=r"pub called: (Called|DownstreamTarget)", special="called")
rule("downstream", "method", "judged", "authorize", W + "serve.rs", [W + "edge.rs", W + "http.rs"])
rule("downstream", "fn", "refused", "authorize", W + "http.rs")
rule("downstream", "method", "judge", "evaluate", W + "access.rs", [W + "conns.rs", W + "fuzz.rs", W + "serve.rs"])
rule("downstream", "method", "told", "audit", W + "access.rs", [W + "fuzz.rs", W + "serve.rs"])
rule("downstream", "type", "Told", "AuditEvent", W + "access.rs", [W + "serve.rs"])
rule("downstream", "method", "opened", "register", W + "worker.rs", [W + "http.rs", W + "serve.rs"])

# --- Ask, Asked: inputs ----------------------------------------------------------------------------------------------
rule("ask", "type", "Ask", "RouteInput", W + "table.rs", [W + "http.rs", W + "fuzz.rs"])
rule("ask", "type", "AskTcp", "TcpRouteInput", W + "table.rs", [W + "serve.rs", W + "fuzz.rs"])
rule("ask", "any", "ask", "input", W + "table.rs", probe=r"ask: &(Ask|RouteInput)")
rule("ask", "any", "ask", "input", W + "http.rs", probe=r"let ask = (Ask|RouteInput)::new", not_def=True)
rule("ask", "type", "Asked", "AuthzContext", W + "access.rs", [W + "conns.rs", W + "fuzz.rs", W + "serve.rs"])
rule("ask", "type", "Ask", "InboundRequest", Z + "inbound.rs", [Z + "outbound.rs"])
rule("ask", "any", "ask", "request", Z + "inbound.rs", probe=r"ask: (Ask|InboundRequest)\)", not_in_fn_with=("request",))
rule("ask", "type", "Ask", "AdmissionRequest", C + "webhook.rs")
rule("ask", "type", "Asked", "WebhookPath", C + "webhook.rs")
rule("ask", "type", "Judge", "Validator", C + "webhook.rs", [C + "serve.rs"])
rule("ask", "fn", "judge", "validate", C + "webhook.rs")
rule("ask", "type", "Asked", "PendingSubscription", "crates/xds/src/client.rs")
rule("ask", "type", "Asked", "AgentReply", "cni/src/plugin.rs")

# --- waypoint/cluster.rs: endpoints of a cluster ---------------------------------------------------------------------
rule("cluster", "type", "Set", "EndpointSet", W + "cluster.rs", ww, not_files=[W + "config.rs"])
rule("cluster", "type", "Member", "LbEndpoint", W + "cluster.rs", [W + "balance.rs", W + "place.rs", W + "locality.rs", W + "upstream.rs"])
rule("cluster", "type", "Endpoint", "EndpointStats", W + "cluster.rs")
rule("cluster", "type", "Key", "ClusterKey", W + "cluster.rs", [W + "edge.rs", W + "serve.rs", W + "upstream.rs", W + "worker.rs"], not_after=("metrics",))
rule("cluster", "type", "Follows", "DynamicEndpoint", W + "cluster.rs", [W + "upstream.rs", W + "worker.rs"])
rule("cluster", "any", "follows", "dynamic_endpoint", W + "cluster.rs", [W + "http.rs", W + "record.rs", W + "request_log.rs", W + "upstream.rs", W + "worker.rs"],
     probe=r"pub follows:")
rule("cluster", "any", "through", "via_waypoint", W + "cluster.rs", [W + "upstream.rs"], probe=r"pub through:")
rule("cluster", "any", "apart", "pool_partition", W + "cluster.rs", [W + "upstream.rs"], probe=r"pub apart:")
rule("cluster", "any", "like", "preferred_family", W + "cluster.rs", [W + "worker.rs"], probe=r"like: IpAddr")
rule("cluster", "any", "like", "preferred_family", P + "endpoints.rs", probe=r"like: IpAddr")
rule("cluster", "method", "at", "with_endpoint", W + "cluster.rs", [W + "worker.rs"], receivers=("set", "Set", "EndpointSet"))
rule("cluster", "method", "took", "record_latency", W + "cluster.rs", [W + "balance.rs", W + "http.rs"])
rule("cluster", "method", "result", "record_outcome", W + "cluster.rs", [W + "http.rs", W + "serve.rs"])
rule("cluster", "any", "ejects", "ejection_active", W + "cluster.rs", [W + "balance.rs"], probe=r"fn ejects\b")

# --- waypoint/upstream.rs: connections to endpoints ------------------------------------------------------------------
rule("upstream", "variant", "Keep", "Reuse", W + "upstream.rs", [W + "reply.rs", W + "http.rs"], qual="After")
rule("upstream", "variant", "Shared", "Multiplexed", W + "upstream.rs", [W + "reply.rs", W + "http.rs"], qual="After")
rule("upstream", "variant", "Alone", "Close", W + "upstream.rs", [W + "reply.rs", W + "http.rs"], qual="After")
edit("upstream", W + "upstream.rs", "    Keep { pool: Rc<Pool>,", "    Reuse { pool: Rc<Pool>,")
edit("upstream", W + "upstream.rs", "    Shared(#[allow(dead_code)] Active)", "    Multiplexed(#[allow(dead_code)] Active)")
edit("upstream", W + "upstream.rs", "    Alone(#[allow(dead_code)]", "    Close(#[allow(dead_code)]")
rule("upstream", "type", "After", "ConnectionDisposition", W + "upstream.rs", [W + "reply.rs", W + "http.rs"])
rule("upstream", "any", "after", "disposition", W + "reply.rs", probe=r"after: Option<(After|ConnectionDisposition)>")
rule("upstream", "method", "done", "release", W + "upstream.rs", [W + "reply.rs", W + "http.rs"], receivers=("after", "a", "disposition"))
rule("upstream", "type", "Active", "InFlight", W + "upstream.rs")
rule("upstream", "type", "End", "PoolKey", W + "upstream.rs")
rule("upstream", "any", "end", "pool_key", W + "upstream.rs", probe=r"fn end\(a: &Attempt")
rule("upstream", "fn", "words", "error_chain", W + "upstream.rs")

# --- waypoint/reply.rs, http.rs: permits and circuit breaking --------------------------------------------------------
rule("permits", "type", "Held", "InFlightEndpoint", W + "reply.rs", [W + "http.rs"])
rule("permits", "type", "Counter", "RequestPermit", W + "reply.rs", [W + "http.rs"])
rule("permits", "type", "Retrying", "RetryPermit", W + "http.rs")
rule("permits", "fn", "place", "acquire_connection", W + "http.rs", shape="callee")
rule("permits", "any", "place", "permit", W + "http.rs", probe=r"let place = match|let permit = match", not_callee=True, not_def=True)
rule("permits", "any", "place", "permit", W + "reply.rs", probe=r"place: Option<OwnedSemaphorePermit>")
edit("permits", W + "reply.rs", "_place: Option<OwnedSemaphorePermit>", "_permit: Option<OwnedSemaphorePermit>")
edit("permits", W + "reply.rs", "_place: permit", "_permit: permit")
rule("permits", "any", "places", "connection_permits", W + "cluster.rs", [W + "http.rs"], probe=r"fn places\b")
rule("permits", "type", "Waiting", "PendingGuard", W + "http.rs")
rule("permits", "fn", "wants", "is_retryable", W + "http.rs")

# --- waypoint/place.rs, balance.rs: locality -------------------------------------------------------------------------
rule("locality", "type", "Group", "LocalityGroup", W + "place.rs", [W + "balance.rs", W + "cluster.rs"])
rule("locality", "any", "level", "priority", W + "place.rs", [W + "balance.rs"], probe=r"pub level: usize")
rule("locality", "fn", "near", "choose_from", W + "balance.rs")
rule("locality", "fn", "pick", "choose_in_group", W + "balance.rs")
move("locality", W + "place.rs", W + "locality.rs", "place", "locality", W, None)

# --- origin ----------------------------------------------------------------------------------------------------------
move("origin", W + "origin.rs", W + "upstream_tls.rs", "origin", "upstream_tls", W, None)
rule("origin", "type", "Origin", "NetnsConnector", "crates/rt/src/socket.rs", [P + "dial.rs", W + "worker.rs", Z + "inpod.rs"])
rule("origin", "any", "origin", "connector", P + "dial.rs", [Z + "*.rs"], probe=r"origin: &'a (Origin|NetnsConnector)")
rule("origin", "any", "origin", "connector", W + "worker.rs", probe=r"pub origin: (Origin|NetnsConnector)")
edit("origin", W + "upstream.rs", "&w.origin", "&w.connector")
edit("origin", W + "upstream.rs", "origin: &w.connector", "connector: &w.connector")
rule("origin", "type", "Origin", "ObjectSource", "crates/kube/src/source.rs",
     ["crates/kube/src/lib.rs", "cni/src/agent.rs", "cni/src/config.rs", C + "config.rs", C + "serve.rs"])
rule("origin", "any", "origin", "object_source", "cni/src/config.rs", ["cni/src/agent.rs", C + "config.rs", C + "serve.rs"], probe=r"fn origin\(&self\)")

# --- authority -------------------------------------------------------------------------------------------------------
rule("authority", "type", "Authority", "CertificateAuthority", C + "ca.rs", [C + "kubernetes.rs", C + "serve.rs", C + "tls.rs"])
rule("authority", "type", "Authority", "CaClient", P + "secrets.rs", [P + "remote.rs"])
rule("authority", "any", "authority", "ca", P + "secrets.rs", probe=r"authority: A\b", not_in_fn_with=("ca",))
rule("authority", "fn", "authority", "ca_bundle", G, shape="callee")
edit("authority", G, "and_then(authority)", "and_then(ca_bundle)")
edit("authority", V + "routes/backend_tls.rs", "gateways::authority", "gateways::ca_bundle")
edit("authority", V + "routes/backend_tls.rs", "            authority(s.ok_or_else(", "            ca_bundle(s.ok_or_else(")
edit("authority", V + "routes/destination_rule.rs", "gateways::authority", "gateways::ca_bundle")
edit("authority", V + "routes/destination_rule.rs", "and_then(authority)", "and_then(ca_bundle)")

# --- Turn ------------------------------------------------------------------------------------------------------------
rule("turn", "type", "Turn", "SampleKind", W + "worker.rs", [W + "edge.rs", W + "http.rs", W + "serve.rs"])
rule("turn", "method", "turn", "sample", W + "worker.rs", [W + "edge.rs", W + "http.rs", W + "serve.rs"])
rule("turn", "any", "turns", "samples", W + "worker.rs", probe=r"turns: \[Cell")
rule("turn", "type", "Turn", "FlushTurn", "crates/hbone/src/stream.rs", ["crates/hbone/*/*.rs"])
rule("turn", "method", "turn", "flush_turn", "crates/hbone/src/stream.rs", ["crates/hbone/src/*.rs", "crates/hbone/tests/*.rs"])
rule("turn", "type", "Turn", "FetchSchedule", C + "jwks.rs")
rule("turn", "any", "turns", "schedules", C + "jwks.rs", probe=r"let mut turns: ")

# --- Flag, Reply, Record ---------------------------------------------------------------------------------------------
rule("reply", "type", "Flag", "ResponseFlag", W + "flag.rs", ww)
rule("reply", "method", "own", "local", W + "reply.rs", ww, receivers=("Reply", "ResponseBody", "impl Reply", "impl ResponseBody"))
rule("reply", "fn", "own", "local_response", W + "reply.rs", [W + "http.rs", W + "worker.rs", W + "serve.rs"], shape="reply_own")
rule("reply", "type", "Reply", "ResponseBody", W + "reply.rs", ww)
rule("reply", "variant", "Own", "Local", W + "reply.rs", qual="Kind")
edit("reply", W + "reply.rs", "    Own(Bytes),", "    Local(Bytes),")
rule("reply", "fn", "ours", "local_reply", W + "http.rs")
rule("reply", "fn", "failed", "local_reply_of", W + "http.rs")
rule("reply", "fn", "answered", "log_reply", W + "http.rs", shape="callee")
rule("record", "type", "Record", "RequestLog", W + "record.rs", ww)
move("record", W + "record.rs", W + "request_log.rs", "record", "request_log", W, None)

# --- Text, Rule, Table -----------------------------------------------------------------------------------------------
rule("route", "variant", "Segments", "PathSegments", W + "text.rs", ww, qual="Text")
edit("route", W + "text.rs", "    Segments(String),", "    PathSegments(String),")
rule("route", "type", "Text", "StringMatcher", W + "text.rs", [W + "table.rs", W + "http.rs"], not_after=("ir",))
move("route", W + "text.rs", W + "matcher.rs", "text", "matcher", W, None, skip=("karst_api", "ir"))
rule("route", "method", "holds", "matches", W + "table.rs", [W + "fuzz.rs"])
rule("route", "type", "Found", "RouteMatch", W + "table.rs", [W + "http.rs", W + "fuzz.rs"])
rule("route", "method", "pick", "choose_weighted", W + "table.rs", [W + "edge.rs", W + "http.rs", W + "serve.rs", W + "fuzz.rs"])
rule("authz", "type", "What", "AttributeMatcher", W + "access.rs")
rule("authz", "type", "Value", "ValueMatcher", W + "access.rs")
rule("authz", "type", "Test", "Condition", W + "access.rs")
rule("authz", "any", "what", "attribute_matcher", W + "access.rs", probe=r"what: (What|AttributeMatcher)", dry=True)
rule("authz", "method", "holds", "matches", W + "access.rs")

# --- names with numbers ----------------------------------------------------------------------------------------------
rule("two", "type", "Scope2", "LocalityScope", P + "state.rs", [P + "endpoints.rs"])
rule("two", "type", "Cidr2", "CidrText", "crates/policy/src/model.rs",
     ["crates/policy/src/*.rs", "crates/policy/tests/*.rs", "crates/api/src/convert.rs", V + "policy.rs"])
rule("two", "any", "speaks_two", "uses_http2", W + "http.rs", probe=r"fn speaks_two\b")
rule("two", "any", "two", "http2", W + "http.rs", probe=r"two: bool", not_path=True)
rule("two", "any", "two", "http2", W + "serve.rs", probe=r"two: bool", not_path=True)
rule("two", "any", "one", "http1", W + "serve.rs", probe=r"let one = !(two|http2) &&")
rule("two", "any", "two", "http2", W + "edge.rs", probe=r"let two = first\.starts_with", not_path=True)

# --- state -----------------------------------------------------------------------------------------------------------
rule("state", "method", "stand_in", "add_workload_service", P + "state.rs", [W + "control.rs"], receivers=("mesh", "fn &mut self", "s"), special="stand_in_mut")
rule("state", "method", "stand_in", "workload_service", P + "state.rs", [W + "*.rs"], receivers=("Service", "fn"))
rule("state", "method", "is_stand_in", "is_workload_service", P + "state.rs", [P + "*.rs", W + "*.rs", Z + "*.rs"])
rule("state", "any", "era", "telemetry_generation", W + "control.rs", [W + "metrics.rs", W + "record.rs", W + "request_log.rs", W + "serve.rs"], probe=r"pub era: u64")

# --- control plane clients -------------------------------------------------------------------------------------------
rule("control", "type", "Writer", "StateWriter", W + "control.rs", [W + "lib.rs", W + "record/tests.rs"])
rule("control", "type", "Writer", "StateWriter", Z + "control.rs", [Z + "lib.rs"])
rule("control", "type", "Writer", "StatusWriter", C + "kubernetes.rs", [C + "serve.rs"])
rule("control", "type", "Keeper", "PodManager", Z + "control.rs", [Z + "lib.rs"])
rule("control", "type", "Handler", "XdsSubscriber", "crates/xds/src/client.rs", [W + "control.rs", W + "record/tests.rs", Z + "control.rs"])
rule("control", "type", "Ended", "StreamEnd", "crates/xds/src/client.rs",
     [P + "discovery.rs", W + "control.rs", W + "record/tests.rs", Z + "control.rs"])
rule("control", "method", "up", "connected", "crates/xds/src/client.rs", [W + "control.rs", Z + "control.rs"], receivers=("h", "fn"))
rule("control", "type", "Introduction", "NodeMetadata", P + "remote.rs", [W + "lib.rs", Z + "lib.rs"])
rule("control", "type", "Remote", "ControlPlaneClient", P + "remote.rs", [W + "*.rs", Z + "*.rs"])

# --- controller/convert ----------------------------------------------------------------------------------------------
vs = [V + "*.rs", V + "*/*.rs", V + "*/*/*.rs"]
rule("convert", "type", "Bad", "FieldError", V + "mod.rs", vs)
rule("convert", "type", "Said", "ReasonMessage", V + "routes/backend_tls.rs")
rule("convert", "fn", "trouble", "validate", V + "policy.rs", vs, after=("policy",))
rule("convert", "fn", "misplaced", "ineffective_reason", V + "policy.rs", vs)
rule("convert", "fn", "misplaced", "ineffective_reason", V + "routes/telemetry.rs")
rule("convert", "fn", "usable", "effective", V + "routes/telemetry.rs", vs, after=("telemetry",))
rule("convert", "fn", "judge", "evaluate", V + "routes/backend_tls.rs", [V + "policy_status.rs"])
rule("convert", "fn", "say", "condition", V + "gateway_status.rs")
rule("convert", "type", "PodFacts", "PodInfo", C + "model.rs", [C + "*.rs", V + "*.rs"])
rule("convert", "fn", "facts", "pod_infos", V + "workload.rs", [V + "mod.rs"], shape="callee")
rule("convert", "fn", "fact", "pod_info", V + "workload.rs", [V + "compiler.rs"], shape="callee")
rule("objects", "type", "Objects", "LocatedObjects", V + "compiler.rs", probe=r"type Objects = Vec")
rule("objects", "type", "Index", "Objects", V + "mod.rs", vs, probe=r"struct Index\b")
edit("objects", V + "routes/gateway_api.rs", "(x, hosts): (&'a ", "(objects, hosts): (&'a ")
edit("objects", V + "routes/gateway_api.rs", "        Self { x, hosts, kind,", "        Self { objects, hosts, kind,")
RULES.append(dict(group="objects", kind="index_param", old="x", new="objects", home=V + "mod.rs", scope=vs))

# --- small ones ------------------------------------------------------------------------------------------------------
rule("small", "method", "worn", "needs_rekey", "crates/hbone/src/record.rs", ["crates/hbone/src/*.rs", "crates/hbone/tests/*.rs"])
rule("small", "type", "Undecided", "DiscardOnCancel", "crates/hbone/src/pool.rs")
rule("small", "fn", "raw", "connect_tcp", W + "serve.rs")
rule("small", "fn", "carry", "relay", W + "serve.rs", [W + "edge.rs"], shape="callee", not_after=("Busy",))
rule("small", "type", "Carrying", "TcpRelay", W + "serve.rs", [W + "edge.rs", W + "http.rs"])
rule("small", "fn", "carry", "relay", Z + "inbound.rs", [Z + "outbound.rs"])
rule("small", "method", "carry", "keep_busy", W + "gate.rs", [W + "edge.rs", W + "http.rs"], receivers=("Busy", "fn"))
rule("small", "type", "Idle", "UnsupportedKind", "crates/manifest/src/idle.rs",
     ["crates/manifest/src/*.rs", V + "check.rs", C + "webhook.rs"])
rule("small", "any", "IDLE", "UNSUPPORTED", "crates/manifest/src/idle.rs", [V + "*.rs", C + "webhook.rs"], probe=r"const IDLE\b")
rule("small", "fn", "idle", "unsupported", "crates/manifest/src/idle.rs", ["crates/manifest/src/*.rs", V + "*.rs", V + "*/*.rs", C + "webhook.rs"], shape="callee", also_use=True)
move("small", "crates/manifest/src/idle.rs", "crates/manifest/src/unsupported.rs", "idle", "unsupported", "crates/manifest/src/", "karst_manifest")
move("modules", W + "token.rs", W + "jwt.rs", "token", "jwt", W, None)
move("modules", C + "token.rs", C + "local_tokens.rs", "token", "local_tokens", C, None)
move("modules", C + "callers.rs", C + "token_review.rs", "callers", "token_review", C, None)
move("modules", C + "auth.rs", C + "authn.rs", "auth", "authn", C, None)
rule("knobs", "any", "knob", "option", P + "remote.rs", probe=r"knob: &str", captures=True)
rule("knobs", "any", "knob", "option", "crates/rt/src/admin.rs", probe=r"knob: &str", captures=True)
rule("knobs", "any", "knob", "option", W + "config.rs", probe=r"\|knob: &str", captures=True)
rule("knobs", "any", "knob", "option", "xtask/src/bench.rs", probe=r"knob: &str", captures=True)
for f in [W + "lib.rs", W + "config.rs", Z + "lib.rs", Z + "config.rs", "cni/src/config.rs", C + "lib.rs", C + "config.rs",
          "crates/rt/src/socket.rs", "crates/hbone/src/lib.rs"]:
    RULES.append(dict(group="knobs", kind="prose", old="knobs", new="options", home=f, scope=[f]))
rule("knobs", "fn", "wrong_knobs_are_refused", "wrong_options_are_refused", Z + "config.rs")
# --- admission's places are permits (rt) -----------------------------------------------------------------------------
adm = ["crates/rt/src/admin.rs", "crates/rt/src/admission/table.rs", C + "gate.rs", C + "tls.rs", C + "serve.rs", W + "gate.rs", W + "edge.rs", W + "serve.rs",
       W + "worker.rs", W + "conns.rs", Z + "inbound.rs"]
rule("permit", "type", "Place", "Permit", "crates/rt/src/admission.rs", adm)
rule("permit", "any", "place", "permit", "crates/rt/src/admission.rs",
     [a for a in adm if "table" not in a] + [W + "tests.rs", W + "upstream.rs", W + "record/tests.rs", W + "request_log/tests.rs"],
     probe=r"pub struct (Place|Permit)\b", only_files_with=r"\b(Place|Permit)\b|\bplace: None", not_receiver=("budget",))
rule("permit", "type", "Place", "Slot", Z + "worker.rs", [Z + "inbound.rs", Z + "outbound.rs"], dry=True)


# ======================================================================================================================
def git_files(root):
    r = subprocess.run(["git", "-C", root, "ls-files"], capture_output=True, text=True)
    return [f for f in r.stdout.split("\n") if f and os.path.exists(f"{root}/{f}")]


class Tree:
    def __init__(self, root):
        self.root, self.files = root, git_files(root)
        self.text, self.orig, self.toks = {}, {}, {}

    def get(self, f):
        if f not in self.text:
            with open(f"{self.root}/{f}", encoding="utf-8") as h:
                self.text[f] = self.orig[f] = h.read()
        return self.text[f]

    def set(self, f, t):
        self.text[f] = t
        self.toks.pop(f, None)

    def tokens(self, f):
        if f not in self.toks:
            t = self.get(f)
            self.toks[f] = [(k, a, b, t[a:b]) for k, a, b in lex(t) if k != "comment"]
        return self.toks[f]

    def match(self, globs, home, without=()):
        out = []
        for g in globs:
            for f in self.files:
                if f.endswith(".rs") and f not in out and f.count("/") == g.count("/") and fnmatch.fnmatch(f, g):
                    if not any(fnmatch.fnmatch(f, n) for n in without):
                        out.append(f)
        return out


def in_use_spans(toks):
    spans, i = [], 0
    while i < len(toks):
        if toks[i][3] == "use" and toks[i][0] == "id":
            j = i
            while j < len(toks) and toks[j][3] != ";":
                j += 1
            spans.append((i, j))
            i = j
        i += 1
    return spans


def use_root(toks, spans, i):
    for a, b in spans:
        if a < i < b:
            r = a + 1
            while toks[r][3] in ("pub",):
                r += 1
            return toks[r][3]
    return None


def probe_of(r):
    if r.get("probe"):
        return r["probe"]
    o = re.escape(r["old"])
    return {
        "type": rf"\b(struct|enum|trait|type|union)\s+{o}\b",
        "method": rf"\bfn\s+{o}\b",
        "fn": rf"\bfn\s+{o}\b",
    }.get(r["kind"], rf"\b{o}\b")


def fn_spans(toks):
    """[(name, start, open, end)] of functions; start is the token of `fn`."""
    out = []
    for i, t in enumerate(toks):
        if t[3] == "fn" and t[0] == "id" and i + 1 < len(toks) and toks[i + 1][0] == "id":
            d, j = 0, i
            while j < len(toks):
                x = toks[j][3]
                if x in "([" and toks[j][0] == "punct":
                    d += 1
                elif x in ")]" and toks[j][0] == "punct":
                    d -= 1
                elif d == 0 and x == ";":
                    j = None
                    break
                elif d == 0 and x == "{":
                    break
                j += 1
            if j is None or j >= len(toks):
                continue
            k, depth = j, 0
            while k < len(toks):
                if toks[k][0] == "punct":
                    depth += (toks[k][3] == "{") - (toks[k][3] == "}")
                if depth == 0:
                    break
                k += 1
            out.append((toks[i + 1][3], i, j, k))
    return out


def wanted(r, toks, i, spans, fns):
    """Is token i, whose text is r.old, to be renamed?"""
    def at(j):
        return toks[j][3] if 0 <= j < len(toks) else ""
    p, pp, n = at(i - 1), at(i - 2), at(i + 1)
    kind, shape = r["kind"], r.get("shape")
    if pp in r["not_after"] and p == "::":
        return False
    if r.get("after") and p == "::" and pp not in r["after"]:
        return False
    if kind == "type":
        if p == ".":
            return False
        if p == "::" and pp[:1].isupper():
            return False  # a variant
        if n == ":" and at(i - 1) in ("{", ",") and use_root(toks, spans, i) is None:
            return False  # a field's name
        return True
    if kind == "variant":
        return p == "::" and pp == r["qual"]
    if kind == "method" or shape == "method":
        rec = r.get("receivers")
        if p == "fn":
            if r.get("special") == "stand_in_mut":
                return at(i + 2) == "&" and at(i + 3) == "mut"
            if r["old"] == "stand_in":
                return not (at(i + 2) == "&" and at(i + 3) == "mut")
            if r["old"] == "own" and r["new"] == "local":
                return at(i + 2) == "body"
            return True
        if p not in (".", "::"):
            return False
        if n not in ("(",) and not (n == "::" and at(i + 2) == "<") and p == ".":
            return False
        if rec and pp not in rec:
            return False
        return True
    if kind == "fn":
        if shape == "reply_own":
            return (p == "fn" and at(i + 2) == "status") or (p == "::" and pp == "reply")
        if p == "." or (p == "::" and pp[:1].isupper()):
            return False
        if p == "fn":
            return True
        if use_root(toks, spans, i) is not None:
            return shape != "callee" or r.get("also_use") and (n != "::")
        if shape == "callee":
            return n == "("
        if n == ":" or (p == "let") or (p == "mut") :
            return False
        return n in ("(", ")", ",", ";") and (n == "(" or p in ("(", ",", "::")) and not (n != "(" and local_in_fn(toks, i, fns, r["old"]))
    if kind == "field":
        if r.get("special") == "called":
            if p == ".":
                return pp in r["owners"] and n != "("
            return False
        return p == "." and n != "("
    if kind == "any":
        if r.get("not_closure") and n == "=" and at(i + 2) in ("|", "||"):
            return False
        if r.get("not_receiver") and p == "." and pp in r["not_receiver"]:
            return False
        if r.get("special") == "called":
            f = r["_file"]
            if n == "(" or (n == "=" and at(i + 2) in ("|", "||")):
                return False
            if f.endswith("/http.rs") or f.endswith("/upstream.rs"):
                return (p == "." and pp in ("call", "downstream")) or (n == ":" and at(i + 2) in ("Called", "DownstreamTarget"))
            if f.endswith("/serve.rs") and n == ":" and at(i + 2) == "self":
                return False  # the log's
            return True
        if p == "fn" and r.get("not_def"):
            return False
        if n == "(" and p != "." and r.get("not_callee"):
            return False
        if n == "(" and r.get("not_call"):
            return False
        if r.get("not_path") and (n == "::" or p == "::"):
            return False
        if r.get("not_path") and use_root(toks, spans, i) is not None:
            return False
        if r.get("not_callee") and p == "." and n == "(":
            return False
        return True
    return False


def local_in_fn(toks, i, fns, name):
    """Is `name` bound by a let or a parameter in the function around token i?"""
    for _, s, o, e in fns:
        if s < i < e:
            for j in range(s, e):
                if toks[j][3] == name and toks[j][0] == "id" and toks[j - 1][3] in ("let", "mut", "|", "ref"):
                    return True
                if toks[j][3] == name and toks[j + 1][3] == ":" and toks[j][0] == "id" and j < o:
                    return True
    return False


SPAN = re.compile(r"`[^`\n]*`")


def comments(text):
    return [(a, b) for k, a, b in lex(text) if k == "comment"]


def rename_in_comments(text, r):
    """Inside code spans of comments only."""
    o, n = r["old"], r["new"]
    pats = []
    if r["kind"] == "type":
        pats = [(re.compile(rf"(?<![\w.]){o}\b(?!\.rs)"), n)]
    elif r["kind"] == "variant":
        pats = [(re.compile(rf"\b{r['qual']}::{o}\b"), f"{r['qual']}::{n}")]
    elif r["kind"] in ("method", "fn"):
        pats = [(re.compile(rf"(?<=::){o}\b"), n), (re.compile(rf"\b{o}(?=\()"), n)]
        if r.get("receivers"):
            pats = [(re.compile(rf"\b({'|'.join(x for x in r['receivers'] if x.isidentifier())})::{o}\b"), rf"\1::{n}")]
    elif r["kind"] == "any" and not r.get("not_call"):
        pats = [(re.compile(rf"(?<=::){o}\b"), n), (re.compile(rf"(?<=`){o}(?=`)"), n)]
    if not pats:
        return text, 0
    out, last, count = [], 0, 0
    for a, b in comments(text):
        c = text[a:b]
        if "`" not in c or o not in c:
            continue

        def sub(m):
            nonlocal count
            s = m.group(0)
            if any(("::" + x) in s for x in ("ir::" + o,)):
                return s
            for p, q in pats:
                s, k = p.subn(q, s)
                count += k
            return s

        new = SPAN.sub(sub, c)
        out += [text[last:a], new]
        last = b
    out.append(text[last:])
    return "".join(out), count


def apply_tokens(tree, f, picks, new):
    t = tree.get(f)
    for a, b in sorted(picks, reverse=True):
        t = t[:a] + new + t[b:]
    tree.set(f, t)


def run_rule(tree, r, log):
    home = r["home"]
    if home not in tree.files:
        return "no such file: " + home
    if r.get("dry"):
        return "left for hand work"
    if r["kind"] == "edit":
        n = tree.get(home).count(r["old"])
        if n:
            tree.set(home, tree.get(home).replace(r["old"], r["new"]))
        return n
    if r["kind"] == "prose":
        t, n, out, last = tree.get(home), 0, [], 0
        for a, b in comments(t):
            c, k = re.subn(rf"(?<![\w-]){r['old']}\b", r["new"], t[a:b])
            n += k
            out += [t[last:a], c]
            last = b
        tree.set(home, "".join(out) + t[last:])
        return n
    if r["kind"] == "index_param":
        return index_params(tree, r, log)
    if not re.search(probe_of(r), tree.get(home), re.M):
        return "done, or not there"
    if r.get("shape") == "field_or_local_in":
        return field_of(tree, r)
    total, per = 0, collections.Counter()
    for f in tree.match(r["scope"], home, r.get("not_files", ())):
        if r.get("only_files_with") and not re.search(r["only_files_with"], tree.get(f)):
            continue
        if f != home and r["kind"] == "type" and not uses_type(tree, f, r):
            continue
        toks = tree.tokens(f)
        spans, fns = in_use_spans(toks), fn_spans(toks)
        skip, r["_file"] = [], f
        if r.get("not_in_fn_with"):
            for name, s, o, e in fns:
                if any(toks[j][3] in r["not_in_fn_with"] and toks[j - 1][3] != "." and toks[j][0] == "id" for j in range(s + 2, e)):
                    skip.append((s, e))
                    if any(toks[j][3] == r["old"] for j in range(s, e)):
                        log.append(f"    hand: {f}: fn {name} has both `{r['old']}` and {r['not_in_fn_with']}")
        picks = []
        new_before = [k for k, x in enumerate(toks) if x[3] == r["new"] and x[0] == "id"]
        for i, (k, a, b, s) in enumerate(toks):
            if k == "id" and s == r["old"] and wanted(r, toks, i, spans, fns) and not any(x < i < y for x, y in skip):
                picks.append((a, b))
        if picks:
            if new_before and not r.get("new_checked"):
                lines = sorted({tree.get(f).count("\n", 0, toks[k][1]) + 1 for k in new_before})
                log.append(f"    collision? {f}: `{r['new']}` is there already at {lines[:8]} ({r['group']}: {r['old']})")
            apply_tokens(tree, f, picks, r["new"])
            per[f] += len(picks)
        if r.get("captures"):
            t, n = captures(tree.get(f), r["old"], r["new"])
            if n:
                tree.set(f, t)
                per[f] += n
        if picks or f == home:
            t, n = rename_in_comments(tree.get(f), r)
            if n:
                tree.set(f, t)
                per[f + " (comments)"] += n
        total += per[f]
    if r["kind"] == "type":
        for f in tree.files:  # docs: code spans that name the item with its module
            if f.startswith("docs/") and f != "docs/refused.md" and f.endswith(".md"):
                pass
    log.append("    " + ", ".join(f"{f} {n}" for f, n in per.items()))
    return total


def uses_type(tree, f, r):
    """Does file f mean the type of `home`? It imports it, names it by path, or glob-imports the parent."""
    t = tree.get(f)
    o = re.escape(r["old"])
    module = os.path.basename(r["home"])[:-3]
    if module in ("mod", "lib"):
        module = os.path.basename(os.path.dirname(r["home"]))
    if re.search(rf"\b(struct|enum|trait|type)\s+{o}\b", t):
        return False  # it has its own
    moved = {m["oldmod"]: m["newmod"] for m in MOVES}
    names = {module, moved.get(module, module)} | {m["oldmod"] for m in MOVES if m["newmod"] == module}
    if any(re.search(rf"\b{n}::(\w+::)*{o}\b", t) for n in names):
        return True
    if any(re.search(rf"\b{n}::\{{[^;]*?\b{o}\b", t) for n in names):
        return True
    if re.search(rf"use\s+(super|crate::convert)(::\w+)*::(\{{[^;]*?\b{o}\b|{o}\b|\*)", t) or "use super::*" in t:
        return True
    if re.search(rf"use\s+[^;]*\b{o}\b[^;]*;", t):
        return imports_from(t, o, names, r)
    return False


def imports_from(t, o, names, r):
    extern = {"crates/rt": "karst_rt", "crates/proxy": "karst_proxy", "crates/xds": "karst_xds", "crates/kube": "karst_kube",
              "crates/policy": "karst_policy", "crates/manifest": "karst_manifest", "crates/hbone": "karst_hbone"}
    crate = next((v for k, v in extern.items() if r["home"].startswith(k + "/")), None)
    for m in re.finditer(rf"use\s+([^;]*\b{o}\b[^;]*);", t):
        s = m.group(1)
        if crate and (crate in s):
            return True
        if any(n in s for n in names):
            return True
    return False


def captures(text, old, new):
    """`{old}` in format strings."""
    out, last, n = [], 0, 0
    for k, a, b in lex(text):
        if k == "str":
            s, c = re.subn(rf"(?<!\{{)\{{{old}(?=[:}}])", "{" + new, text[a:b])
            if c:
                out += [text[last:a], s]
                last = b
                n += c
    return "".join(out) + text[last:], n


def field_of(tree, r):
    """gateways.rs: the field `of` of a listener, and the parameter of its `new`."""
    f = r["home"]
    t = tree.get(f)
    n0 = t
    t = re.sub(r"(?m)^    of: (Of|ListenerParent),", r"    parent: \1,", t)
    t = t.replace("fn new(id: String, of: ListenerParent,", "fn new(id: String, parent: ListenerParent,")
    t = t.replace("fn new(id: String, of: Of,", "fn new(id: String, parent: Of,")
    t = re.sub(r"(?m)^            of,$", "            parent,", t)
    t = re.sub(r"\b(f|self|a|b|x|front|listener)\.of\b(?!\()", r"\1.parent", t)
    t = re.sub(r"\?\.of\b(?!\()", "?.parent", t)
    t = re.sub(r"let of = (Of|ListenerParent)::", r"let parent = \1::", t)
    t = t.replace("m.name, l.name), of, l.port", "m.name, l.name), parent, l.port").replace("m.name), of, s.port", "m.name), parent, s.port")
    tree.set(f, t)
    return sum(1 for a, b in zip(n0.split("\n"), t.split("\n")) if a != b)


def index_params(tree, r, log):
    total, skipped = 0, []
    for f in tree.match(r["scope"], r["home"]):
        toks = tree.tokens(f)
        fields = re.search(r"(?m)^    x: &'a (Index|Objects)<'a>,", tree.get(f))
        picks = set()
        for name, s, o, e in fn_spans(toks):
            param = [j for j in range(s, o) if toks[j][3] == "x" and toks[j + 1][3] == ":" and toks[j + 2][3] == "&"
                     and any(toks[k][3] in ("Index", "Objects") for k in (j + 3, j + 4))]
            if not param:
                continue
            has = any(toks[j][3] == "objects" and toks[j][0] == "id" and toks[j - 1][3] not in (".", "::") for j in range(s + 2, e))
            shadow = False
            for j in range(o, e):
                if toks[j][3] != "x" or toks[j][0] != "id":
                    continue
                p, n = toks[j - 1][3], toks[j + 1][3]
                if p in ("|", "let", "ref", "mut") or (n == "|" ) or (p == "," and n in ("|",)) or (p == "(" and n in (",", ")") and toks[j - 2][3] == "|") or (p == "for"):
                    shadow = True
                if p == "&" and toks[j - 2][3] in ("|", "let", "(", ",") and n in ("|", ")", ",") and toks[j - 2][3] == "|":
                    shadow = True
                if p == "(" and toks[j - 2][3] in ("Some", "Ok") and n == ")" and toks[j + 2][3] in ("=", "=>"):
                    shadow = True
            if has or shadow:
                skipped.append(f"{f}: fn {name}: " + ("has `objects`" if has else "`x` is bound again"))
                continue
            for j in range(s, e + 1):
                if toks[j][3] == "x" and toks[j][0] == "id" and toks[j - 1][3] not in (".", "::"):
                    # a field's name in a literal or a pattern is renamed with the field, below
                    picks.add((toks[j][1], toks[j][2]))
        if fields:
            for j, (k, a, b, s) in enumerate(toks):
                if k == "id" and s == "x":
                    if toks[j - 1][3] == "." and toks[j - 2][3] in ("self", "c", "view"):
                        picks.add((a, b))
                    elif toks[j + 1][3] == ":" and toks[j + 2][3] != ":" and (toks[j - 1][3] in ("{", ",") or toks[j - 2][3] == "struct"):
                        picks.add((a, b))
        # `let x = Index::new(...)`
        for name, s, o, e in fn_spans(toks):
            lets = [j for j in range(o, e) if toks[j][3] == "x" and toks[j - 1][3] == "let" and toks[j + 1][3] == "="
                    and any(toks[j + 2][3] == w for w in ("Index", "Objects"))]
            if len(lets) == 1 and not any(toks[j][3] == "objects" and toks[j - 1][3] not in (".", "::") and toks[j][0] == "id" for j in range(s + 2, e)) \
                    and not any(toks[j][3] == "x" and toks[j - 1][3] == "|" for j in range(o, e)):
                for j in range(lets[0], e):
                    if toks[j][3] == "x" and toks[j - 1][3] != ".":
                        picks.add((toks[j][1], toks[j][2]))
            elif lets:
                skipped.append(f"{f}: fn {name}: let x = Index::new")
        if picks:
            apply_tokens(tree, f, picks, "objects")
            total += len(picks)
            t, n = captures(tree.get(f), "x", "objects")
            if n:
                log.append(f"    look: {f}: {n} captured {{x}} in strings NOT changed")
    for s in skipped:
        log.append("    hand: " + s)
    return total


def run_move(tree, m, log, apply):
    if m["old"] not in tree.files:
        return "done, or not there"
    n, old, new = 0, m["oldmod"], m["newmod"]
    for f in tree.files:
        if not f.endswith(".rs"):
            continue
        inside = f.startswith(m["crate"])
        if not inside and not (m["extern"] and m["extern"] in tree.get(f)) and not inside:
            continue
        toks = tree.tokens(f)
        spans, picks = in_use_spans(toks), []
        local = {toks[j][3] for j in range(len(toks) - 1) if toks[j - 1][3] in ("let", "mut") and toks[j][3] == old}
        for i, (k, a, b, s) in enumerate(toks):
            if k != "id" or s != old:
                continue
            p, pp, nx = (toks[i - 1][3], toks[i - 2][3], toks[i + 1][3] if i + 1 < len(toks) else "")
            root = use_root(toks, spans, i)
            if p == "mod" and inside:
                picks.append((a, b))
            elif root is not None:
                if root in m["skip"] or (p == "::" and pp in m["skip"]):
                    continue
                if inside and root in ("crate", "super") and p in ("{", ",", "::") and nx in ("::", ",", "}", ";"):
                    # only directly below the crate's root
                    if depth_in_use(toks, spans, i, root) == 1:
                        picks.append((a, b))
                elif m["extern"] and root == m["extern"] and depth_in_use(toks, spans, i, root) == 1:
                    picks.append((a, b))
            elif nx == "::" and p != "::" and inside and p != ".":
                picks.append((a, b))
            elif nx == "::" and p == "::" and (pp in ("crate", "super") and inside or pp == m["extern"]):
                picks.append((a, b))
        if picks:
            apply_tokens(tree, f, picks, new)
            n += len(picks)
            log.append(f"    {f} {len(picks)}")
        # links in comments
        t = tree.get(f)
        if inside:
            c, k = re.subn(rf"(?<=`)((?:crate|super)::)?{old}::(?=\w)", rf"\g<1>{new}::", t) if comments(t) else (t, 0)
            if k:
                tree.set(f, only_comments(t, rf"(?<=`)((?:crate|super)::)?{old}::(?=\w)", rf"\g<1>{new}::"))
    # paths in documents and comments
    for f in tree.files:
        if not f.endswith((".md", ".rs", ".toml", ".yaml")) or f == "docs/refused.md" or f == "CHANGELOG.md":
            continue
        t = tree.get(f)
        if m["old"] in t:
            tree.set(f, t.replace(m["old"], m["new"]))
            log.append(f"    path in {f}")
            n += 1
    # the tests that the threat model names
    for f in ("docs/threat-model.md",):
        if f in tree.files:
            crate = m["crate"].split("/")[0] if not m["crate"].startswith("crates/") else m["crate"].split("/")[1]
            t = tree.get(f)
            c = re.sub(rf"(?<=`)({crate}::)?{old}::(?=[a-z_0-9]+(::[a-z_0-9]+)?`)", lambda x: (x.group(1) or "") + new + "::", t)
            if c != t:
                tests = re.findall(rf"(?<=`)(?:{crate}::)?{old}::([a-z_0-9:]+)`", t)
                if all(x.split("::")[-1] in tree.get(m["old"]) for x in tests):
                    tree.set(f, c)
                    log.append(f"    tests in {f}: {tests}")
                else:
                    log.append(f"    hand: {f} names {old}::{tests}, and not all are in {m['old']}")
    # a folder beside the file (tests)
    pairs = [(m["old"], m["new"])]
    folder = m["old"][:-3] + "/"
    pairs += [(f, m["new"][:-3] + "/" + f[len(folder):]) for f in tree.files if f.startswith(folder)]
    m["pairs"] = pairs
    return n


def depth_in_use(toks, spans, i, root):
    """How many path segments below `root` is token i in its use statement? (1: directly below.)"""
    for a, b in spans:
        if a < i < b:
            stack, path = [], 0
            j = a + 1
            while toks[j][3] == "pub":
                j += 1
            depth = 0
            while j < i:
                x = toks[j][3]
                if x == "::":
                    depth += 1
                elif x == "{":
                    stack.append(depth)
                elif x == "}":
                    depth = stack.pop()
                elif x == "," and stack:
                    depth = stack[-1]
                j += 1
            if root == "super":
                return depth
            return depth
    return 0


def only_comments(t, pat, rep):
    out, last = [], 0
    for a, b in comments(t):
        out += [t[last:a], re.sub(pat, rep, t[a:b])]
        last = b
    return "".join(out) + t[last:]


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("root")
    ap.add_argument("--apply", action="store_true")
    ap.add_argument("--only")
    ap.add_argument("--drop", default="")
    ap.add_argument("--list", action="store_true")
    ap.add_argument("-q", action="store_true")
    o = ap.parse_args()
    groups = list(dict.fromkeys([r["group"] for r in RULES] + [m["group"] for m in MOVES]))
    if o.list:
        print(" ".join(groups))
        return
    only = set(o.only.split(",")) if o.only else set(groups)
    only -= set(o.drop.split(","))
    tree = Tree(o.root)
    total, moves = 0, []
    for g in groups:
        if g not in only:
            continue
        print(f"## {g}")
        for r in RULES:
            if r["group"] != g:
                continue
            log = []
            n = run_rule(tree, r, log)
            name = r["old"].strip().split("\n")[0][:44]
            print(f"  {r['kind']:8} {name:26} -> {r['new'].strip()[:44]:26} {n}   [{r['home']}]")
            if not o.q:
                for line in log:
                    if line.strip():
                        print(line)
            total += n if isinstance(n, int) else 0
    # modules last: rules name files by their old paths
    for m in MOVES:
        if m["group"] not in only:
            continue
        log = []
        n = run_move(tree, m, log, o.apply)
        print(f"  move     {m['old']} -> {m['new']}  {n}")
        if not o.q:
            for line in log:
                print(line)
        if isinstance(n, int):
            moves += m["pairs"]
            total += n
    changed = [f for f, t in tree.text.items() if t != tree.orig[f]]
    print(f"{total} places in {len(changed)} files, {len(moves)} files moved" + ("" if o.apply else " (dry run)"))
    if o.apply:
        for f in changed:
            with open(f"{o.root}/{f}", "w", encoding="utf-8") as h:
                h.write(tree.text[f])
        for a, b in moves:
            os.makedirs(os.path.dirname(f"{o.root}/{b}"), exist_ok=True)
            subprocess.run(["git", "-C", o.root, "mv", a, b], check=True)


if __name__ == "__main__":
    main()
