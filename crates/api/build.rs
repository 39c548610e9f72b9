//! Compiles the protobuf files with protox, so that no protoc has to be installed.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files =
        ["workload", "authorization", "citadel", "zds", "ads", "status", "route", "otlp", "ext_authz", "handover"]
            .map(|f| format!("proto/{f}.proto"));
    println!("cargo:rerun-if-changed=proto");
    let set = protox::compile(&files, ["proto"])?;
    tonic_prost_build::configure()
        .bytes(".istio.workload.Workload.addresses")
        // Written in the order of their keys: equal content has equal bytes.
        .btree_map(".karst.route.v1")
        .btree_map(".envoy.service.auth.v3")
        // Keys are not printed.
        .skip_debug([
            ".karst.route.v1.KeyPair",
            ".karst.route.v1.CollectorHeader",
            ".karst.route.v1.CheckHeader",
            ".karst.route.v1.SessionKey",
        ])
        .compile_fds(set)?;
    Ok(())
}
