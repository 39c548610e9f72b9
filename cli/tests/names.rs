//! Called `istioctl`, the program says what it says as `karst`; profiles are printed for programs, too.
#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

use serde_json::Value;
use std::{
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// Lines of the tutorials that ask no cluster.
const LINES: &[&str] = &[
    "version --remote=false",
    "profile list",
    "profile dump default",
    "profile dump --set profile=demo",
    "profile diff default demo",
    "manifest generate",
    "manifest generate --set profile=minimal",
    "manifest translate --set profile=demo",
    "kube-inject -f FILE",
    "analyze --use-kube=false FILE",
    "validate -f FILE",
    "analyze -L",
    "waypoint generate --for all",
    "completion bash",
];

fn run(program: &Path, line: &str, file: &Path) -> Output {
    let file = file.display().to_string();
    let words = line.split(' ').map(|word| word.replace("FILE", &file));
    Command::new(program).args(words).env_clear().env("HOME", "/nowhere").output().unwrap()
}

#[test]
fn both_names_say_the_same() {
    let dir = std::env::temp_dir().join(format!("karst-names-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    let (karst, istioctl) = (PathBuf::from(env!("CARGO_BIN_EXE_karst")), dir.join("istioctl"));
    symlink(&karst, &istioctl).unwrap();
    let file = dir.join("app.yaml");
    std::fs::write(&file, "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {}\n").unwrap();
    let mut wrong = vec![];
    for line in LINES {
        let [ours, istios] = [&karst, &istioctl].map(|program| run(program, line, &file));
        // It speaks of itself by the name that it was called by.
        let text = |out: &Output| String::from_utf8_lossy(&out.stdout).replace("istioctl", "karst");
        if ours.status != istios.status || text(&ours) != text(&istios) || ours.stdout.is_empty() {
            wrong.push(format!("{line}: {:?} and {:?}", ours.status, istios.status));
        }
    }
    std::fs::remove_dir_all(&dir).unwrap();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn profiles_are_printed_for_programs() {
    let json = |line: &str| -> Value {
        let out = run(Path::new(env!("CARGO_BIN_EXE_karst")), line, Path::new("/"));
        assert!(out.status.success(), "{line}: {}", String::from_utf8_lossy(&out.stderr));
        serde_json::from_slice(&out.stdout).unwrap()
    };
    let names = json("profile list -o json");
    assert!(names.as_array().unwrap().contains(&Value::from("demo")), "{names}");
    let dumped = json("profile dump demo -o json");
    assert_eq!(dumped["kind"], "IstioOperator", "{dumped}");
    let changed = json("profile dump --set values.pilot.replicaCount=2 -o json");
    assert_eq!(changed.pointer("/spec/values/pilot/replicaCount"), Some(&Value::from(2)), "{changed}");
}
