//! The book does what it says. Of every page of docs/, and of the READMEs:
//!
//! - each command of `karst`, in a block or in a sentence, is a command line that the program takes; those that ask no cluster are run, in a copy of samples/,
//!   and the block of text after one is what it prints;
//! - each manifest, whether it is shown or given to a command, is one that the webhook takes; each file that is applied is there;
//! - each label that is set is one that docs/labels.md knows.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test's failure is a panic")]

mod book {
    pub(crate) mod command;
    pub(crate) mod page;
    pub(crate) mod place;
}

use book::{
    command::{self, Simple},
    page::{self, Block, Page},
    place::{Place, Said},
};
use clap::error::ErrorKind;
use std::{collections::BTreeSet, env, ffi::OsString, fs, path::Path, path::PathBuf, process::Command};

/// Pages that are generated, or have manifests that are meant to be refused.
const NOT_READ: &[&str] = &["docs/cli.md", "docs/values.md"];

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn pages() -> Vec<Page> {
    let mut pages = page::all(root());
    pages.retain(|page| !NOT_READ.contains(&page.name.as_str()));
    assert!(pages.len() > 30, "{} pages: the search is broken", pages.len());
    pages
}

/// Runs a check on each block of each page; what it finds is told with page and line.
fn faults(check: impl Fn(&Page, &Block, &mut Vec<String>)) -> Vec<String> {
    let mut faults = vec![];
    for page in pages() {
        for block in &page.blocks {
            let mut found = vec![];
            check(&page, block, &mut found);
            faults.extend(found.into_iter().map(|fault| format!("{}:{}: {fault}", page.name, block.line)));
        }
    }
    faults
}

#[test]
fn every_command_of_karst_is_one_that_it_takes() {
    let mut seen = 0;
    let wrong = faults(|_, block, found| {
        for Simple { words, line, .. } in command::all(block).into_iter().filter(|command| command.is("karst")) {
            let words: Vec<OsString> = words.iter().map(OsString::from).collect();
            if let Err(error) = karst_cli::parse(&words, "karst") {
                found.push(format!("{line}: {}", error.to_string().lines().next().unwrap_or_default()));
            }
        }
    });
    let count = |page: &Page| page.blocks.iter().flat_map(command::all).filter(|command| command.is("karst")).count();
    seen += pages().iter().map(count).sum::<usize>();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen > 40, "{seen} commands: the search is broken");
}

/// In running text a verb may stand without its arguments, but it and its options must exist.
#[test]
fn every_verb_and_option_that_a_sentence_names_exists() {
    let mut seen = 0;
    let mut wrong = vec![];
    for page in pages() {
        for (line, span) in &page.spans {
            let block = Block { kind: "sh".into(), line: *line, text: span.replace('…', "") };
            for Simple { words, .. } in command::all(&block).into_iter().filter(|command| command.is("karst")) {
                seen += 1;
                let words: Vec<OsString> = words.iter().map(OsString::from).collect();
                let Err(error) = karst_cli::parse(&words, "karst") else { continue };
                let is_named = matches!(
                    error.kind(),
                    ErrorKind::MissingRequiredArgument
                        | ErrorKind::MissingSubcommand
                        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
                        | ErrorKind::DisplayHelp
                );
                if !is_named {
                    let said = error.to_string();
                    wrong.push(format!("{}:{line}: `{span}`: {}", page.name, said.lines().next().unwrap_or_default()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen > 20, "{seen} spans: the search is broken");
}

#[test]
fn what_asks_no_cluster_is_run_and_prints_what_the_page_shows() {
    let mut faults = vec![];
    let mut seen = 0;
    for page in pages() {
        let commands: Vec<(&Block, Vec<Simple>)> =
            page.blocks.iter().map(|block| (block, command::all(block))).collect();
        if !commands.iter().flat_map(|(_, all)| all).any(Simple::asks_no_cluster) {
            continue;
        }
        let place = Place::new(root(), &page);
        for (at, (block, all)) in commands.iter().enumerate() {
            let runs: Vec<&Simple> = all.iter().filter(|command| command.asks_no_cluster()).collect();
            let shown = page.blocks.get(at + 1).filter(|next| next.kind == "text" && runs.len() == 1);
            for command in runs {
                seen += 1;
                let Said { status, text } = place.run(command);
                let fault = if status != command.status {
                    format!("{}: ends with {status}, not with {}:\n{text}", command.line, command.status)
                } else if let Some(line) = shown.and_then(|shown| page::missing(&shown.text, &text)) {
                    format!("{}: does not print {line:?}; it prints:\n{text}", command.line)
                } else {
                    continue;
                };
                faults.push(format!("{}:{}: {fault}", page.name, block.line));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(seen > 10, "{seen} commands: the search is broken");
}

#[test]
fn every_manifest_is_one_that_the_webhook_takes() {
    let mut seen = 0;
    let mut faults = vec![];
    for page in pages() {
        let place = Place::new(root(), &page);
        let shown = page.blocks.iter().filter(|block| block.kind == "yaml");
        let given = page.blocks.iter().flat_map(command::all).filter(|command| !command.is("karst"));
        let shown = shown.map(|block| (block.line, block.text.clone()));
        let given = given.filter_map(|command| Some((command.at, command.input?)));
        for (line, manifest) in shown.chain(given) {
            seen += 1;
            let said = place.validate(&manifest);
            if said.status != 0 {
                faults.push(format!("{}:{line}: {}", page.name, said.text));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(seen > 20, "{seen} manifests: the search is broken");
}

#[test]
fn every_file_that_is_applied_is_there_and_is_taken() {
    let mut seen = BTreeSet::new();
    let wrong = faults(|page, block, found| {
        for command in command::all(block).iter().filter(|command| !command.is("karst")) {
            for file in command.words.iter().filter(|word| word.starts_with("samples/") || word.starts_with("charts/"))
            {
                let is_template = file.contains(['*', '<', '…']);
                if !is_template && !root().join(file).exists() && !page.makes(file) {
                    found.push(format!("{}: {file} does not exist", command.line));
                }
            }
        }
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let place = Place::new(root(), &Page::default());
    for file in page::files(&root().join("samples"), "yaml") {
        let said = place.validate(&fs::read_to_string(&file).unwrap());
        assert_eq!(said.status, 0, "{}: {}", file.display(), said.text);
        seen.insert(file);
    }
    assert!(seen.len() > 20, "{seen:?}");
}

#[test]
fn every_label_that_is_set_is_known() {
    let known = fs::read_to_string(root().join("docs/labels.md")).unwrap();
    let wrong = faults(|_, block, found| {
        for command in command::all(block).iter().filter(|command| command.is("kubectl")) {
            if !command.words.iter().any(|word| word == "label" || word == "annotate") {
                continue;
            }
            for word in &command.words {
                let key = word.split('=').next().unwrap_or_default().trim_end_matches('-');
                let ours = key.split('/').next().is_some_and(|domain| {
                    key.contains('/') && (domain.ends_with("istio.io") || domain.ends_with("karst.io"))
                });
                if ours && !known.contains(&format!("`{key}`")) {
                    found.push(format!("{}: docs/labels.md has no {key}", command.line));
                }
            }
        }
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// `cargo xtask test` runs it once helm is built (`target/cluster/bin/helm`; KARST_HELM names another).
#[test]
#[ignore = "needs helm"]
fn every_installation_by_helm_can_be_rendered() {
    let helm = env::var_os("KARST_HELM").map_or_else(|| root().join("target/cluster/bin/helm"), PathBuf::from);
    let mut seen = 0;
    let mut faults = vec![];
    for page in pages() {
        let place = Place::new(root(), &page);
        let commands = page.blocks.iter().flat_map(command::all).filter(|command| command.is("helm"));
        // Charts of this repository; a page may name those of a registry, of an older release or of Istio.
        let is_ours = |command: &Simple| command.words.iter().any(|word| word.starts_with("charts/"));
        let installs = |command: &Simple| ["install", "upgrade"].contains(&command.words[1].as_str());
        for command in commands.filter(|command| installs(command) && is_ours(command)) {
            seen += 1;
            let only_installs = ["--wait", "--reuse-values", "--reset-values", "--create-namespace"];
            let words = command.words[2..].iter().filter(|word| !only_installs.contains(&word.as_str()));
            let of_root = |word: &String| match word.starts_with("charts/") {
                true => root().join(word).display().to_string(),
                false => word.clone(),
            };
            let words =
                ["template", "--kube-version", "v1.34.0"].map(String::from).into_iter().chain(words.map(of_root));
            let out = Command::new(&helm).args(words).current_dir(place.path()).output().unwrap();
            if !out.status.success() {
                let said = String::from_utf8_lossy(&out.stderr);
                faults.push(format!("{}:{}: {}: {said}", page.name, command.at, command.line));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(seen > 5, "{seen} commands: the search is broken");
}
