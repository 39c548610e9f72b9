//! Compiles the gRPC service with protox, so that no protoc has to be installed.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let set = protox::compile(["proto/echo.proto", "proto/istio_echo.proto"], ["proto"])?;
    tonic_prost_build::configure().compile_fds(set)?;
    Ok(())
}
