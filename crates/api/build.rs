//! Compiles the protobuf files with protox, so that no protoc has to be installed.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["workload", "authorization", "citadel", "zds", "ads"].map(|f| format!("proto/{f}.proto"));
    println!("cargo:rerun-if-changed=proto");
    let set = protox::compile(&files, ["proto"])?;
    tonic_prost_build::configure().bytes(".istio.workload.Workload.addresses").compile_fds(set)?;
    Ok(())
}
