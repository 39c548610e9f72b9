//! That every line of the pages of tasks is one that somebody knows how to treat: without a cluster.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test's failure is a panic")]

use karst_e2e::tasks::{How, Line, Page, Part, named, parts, usual};

const PAGE: &str = "# Title

```sh
kubectl apply -f a.yaml        # the first
# not a command

karst explain a b      # exit status 1
```

```text
of two commands
```

```yaml
k: v
```

```sh
karst check
```

Words.

```text
healthy
```

```yaml values
a: b
```
";

#[test]
fn a_page_is_its_commands_manifests_and_values_with_their_lines() {
    let line = |at, text: &str, shown: Option<&str>| Line { at, text: text.into(), shown: shown.map(String::from) };
    let two = vec![
        line(4, "kubectl apply -f a.yaml        # the first", None),
        line(7, "karst explain a b      # exit status 1", None),
    ];
    let expected = [
        Part::Commands(two),
        Part::Manifest(15, "k: v\n".into()),
        Part::Commands(vec![line(19, "karst check", Some("healthy\n"))]),
        Part::Values(29, "a: b\n".into()),
    ];
    assert_eq!(parts(PAGE), expected);
}

#[test]
fn lines_are_treated_by_their_program_and_verb() {
    for (line, how) in [
        ("kubectl -n a apply -f b.yaml     # all to v1; or not", How::Ask),
        ("kubectl label namespace a k-", How::Ask),
        ("kubectl --namespace=a create secret tls b --cert=c --key=d", How::Ask),
        ("kubectl -n a exec deploy/apply -- sh -c 'for i in 1 2; do wget b & done; wait'", How::Run),
        ("kubectl -n a logs deploy/b | grep -E ' (DI|FI) ' | tail -1", How::Run),
        ("kubectl port-forward ds/a 1", How::Serve("Forwarding from")),
        ("A=$(kubectl get pod a -o jsonpath='{.spec.nodeName}')", How::Run),
        ("karst tap -A -o json | jq -c '.flow | [.a]'", How::Look),
        ("karst top --file a", How::Run),
        ("karst analyze -A", How::Finds),
        ("helm upgrade a b", How::Ask),
    ] {
        assert_eq!(usual(line, false), Ok(how), "{line}");
    }
    assert_eq!(usual("kubectl apply -f a", true), Ok(How::Run));
    assert_eq!(usual("karst waypoint delete a", true), Ok(How::Run));
}

#[test]
fn what_nobody_knows_is_a_fault() {
    for line in [
        "",
        "# words",
        "rm -rf /",
        "kubectl apply -f - <<EOF",
        "kubectl -n a \\",
        "  kubectl get pods",
        "kubectl drain n1",
        "kubectl get pods | sh",
        "kubectl get pods && reboot",
        "karst install",
        "karst waypoint delete a",
        "istioctl version",
        "helm uninstall a",
        "a=$(rm -rf /)",
    ] {
        usual(line, false).expect_err(line);
    }
}

#[test]
fn every_line_of_the_pages_is_treated_and_the_tables_have_no_others() {
    let pages = Page::all();
    assert!(pages.len() > 25, "{} pages: the search is broken", pages.len());
    let faults: Vec<String> = pages.iter().flat_map(Page::faults).collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    let gone: Vec<&str> = named().into_iter().filter(|name| pages.iter().all(|page| page.name() != *name)).collect();
    assert!(gone.is_empty(), "pages that the tables name, and are not there: {gone:?}");
}
