//! Builds the eBPF programs (another target, needs bpf-linker) and hands their objects to the loader.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

fn main() {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR").expect("set by cargo")).join("../..");
    let out = PathBuf::from(env::var("OUT_DIR").expect("set by cargo"));
    for p in ["../programs/src", "../programs/Cargo.toml", "../programs/Cargo.lock", "../common/src"] {
        println!("cargo:rerun-if-changed={p}");
    }
    let linker = find_linker(&root).unwrap_or_else(|| {
        panic!("bpf-linker is not installed: run `cargo xtask setup`, which installs it under target/tools (or put it on PATH)")
    });
    let target_dir = out.join("ebpf-target");
    let flags = [
        "-Cdebuginfo=2",
        "-Clink-arg=--btf",
        &format!("--cfg=bpf_target_arch=\"{}\"", env::var("CARGO_CFG_TARGET_ARCH").expect("set by cargo")),
        &format!("-Clinker={}", linker.display()),
    ]
    .join("\x1f");
    let mut cargo = Command::new(env::var("CARGO").expect("set by cargo"));
    // The outer build's wrappers and flags are for the host.
    for v in [
        "RUSTC",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTFLAGS",
        "CARGO_BUILD_TARGET",
        "CARGO_MAKEFLAGS",
        "MAKEFLAGS",
    ] {
        cargo.env_remove(v);
    }
    // These programs are built in one way only: what is tested is what is released.
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("CARGO_PROFILE_")) {
            cargo.env_remove(name);
        }
    }
    let status = cargo
        .args([
            "build",
            "--release",
            "--locked",
            "--quiet",
            "-Z",
            "build-std=core",
            "--target",
            "bpfel-unknown-none",
            "--target-dir",
        ])
        .arg(&target_dir)
        .current_dir(root.join("ebpf/programs"))
        .env("RUSTC_BOOTSTRAP", "1") // build-std on the pinned stable toolchain
        .env("CARGO_ENCODED_RUSTFLAGS", flags)
        .status()
        .expect("cargo can be started");
    assert!(status.success(), "the eBPF programs do not build; the error is above");
    for obj in ["node", "pod"] {
        std::fs::copy(target_dir.join("bpfel-unknown-none/release").join(obj), out.join(format!("{obj}.o")))
            .expect("object was built");
    }
}

fn find_linker(root: &Path) -> Option<PathBuf> {
    let own = root.join("target/tools/bin/bpf-linker");
    println!("cargo:rerun-if-changed={}", own.display());
    let on_path = env::split_paths(&env::var_os("PATH")?).map(|d| d.join("bpf-linker")).find(|p| p.is_file());
    own.is_file().then(|| own.canonicalize().ok()).flatten().or(on_path)
}
