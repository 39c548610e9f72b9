//! Every verb of Istio's istioctl is one of ours: by its own name, or as one that says what there is instead.

use karst_e2e::{Istioctl, Shell};

/// Verbs that there are not, and why.
const ABSENT: &[(&str, &str)] =
    &[("authz", "prints that it is experimental"), ("bug-report version", "the version of bug-report")];

/// Walks istioctl's tree of verbs by its help texts. Gives those that ours does not know, and how many there are.
pub fn missing(ours: &Shell, stock: &Shell) -> (Vec<String>, usize) {
    let (mut waiting, mut missing, mut count) = (vec![String::new()], vec![], 0);
    while let Some(path) = waiting.pop() {
        let line = format!("istioctl {path} --help");
        for name in names(&stock.run(&line, "").text) {
            let inner = format!("{path} {name}").trim().to_owned();
            count += 1;
            if ABSENT.iter().any(|(absent, _)| *absent == inner) {
                continue;
            }
            // A verb that only says what there is instead takes --help as one of its words.
            if ours.run(&format!("istioctl {inner} --help"), "").text.contains("unrecognized subcommand") {
                missing.push(inner.clone());
            }
            waiting.push(inner);
        }
    }
    (missing, count)
}

/// The verbs that a help text lists.
fn names(help: &str) -> Vec<String> {
    let listed = help.lines().skip_while(|line| *line != "Available Commands:").skip(1);
    let lines = listed.take_while(|line| line.starts_with("  "));
    let names = lines.filter_map(|line| line.split_whitespace().next()).map(String::from);
    names.filter(|name| name != "help" && name != "completion").collect()
}

/// Neither shell changes anything.
pub fn check() {
    let (ours, stock) = (Shell::new(Istioctl::Ours, "default"), Shell::new(Istioctl::Stock, "default"));
    let (missing, count) = missing(&ours, &stock);
    println!("{count} verbs of istioctl, {} of which we lack: {missing:?}", missing.len());
    assert!(count > 50 && missing.is_empty(), "{missing:?} of {count}");
}
