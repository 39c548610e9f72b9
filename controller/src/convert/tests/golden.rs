//! Whole manifests, and what comes of them.

use super::*;

/// `controller/golden`: manifests, and what becomes of them. KARST_BLESS=1 writes it; what has changed is then to be read.
#[test]
fn whole_manifests_become_what_is_written_down() {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
    let mut inputs: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|f| f.unwrap().path()).collect();
    inputs.retain(|p| p.extension().is_some_and(|e| e == "yaml"));
    assert!(inputs.len() >= 6);
    for input in inputs {
        let (m, problems) = run(&std::fs::read_to_string(&input).unwrap());
        let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
        let is = format!(
            "routes {:#?}\nbackends {:#?}\naccess {:#?}\ngateways {:#?}\nproblems {problems:#?}\n",
            m.routes, m.backends, m.access, m.gateways
        );
        let path = input.with_extension("ir");
        if std::env::var_os("KARST_BLESS").is_some() {
            std::fs::write(&path, &is).unwrap();
        }
        let want = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            is == want,
            "{} is not what comes of it: run with KARST_BLESS=1, and read the difference",
            path.display()
        );
    }
}
