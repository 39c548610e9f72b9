//! How the pages of exercises are read, and that all of those which are followed on the cluster can be: without a cluster.
#![allow(missing_docs, clippy::unwrap_used, reason = "a test's failure is a panic")]

use karst_e2e::exercise::{Step, files, missing, steps};

const PAGE: &str = "# Title
    karst version

```sh
one
two
```

Words.

```text
of one … two
```

```yaml values
# values.yaml
a: b
```

```sh
three
```

```yaml
# not a file
```

```text
of nothing that is run
```
";

#[test]
fn commands_are_run_in_order_and_have_what_is_shown_right_after_them() {
    let step = |commands: &str, shown: Option<&str>| Step { commands: commands.into(), shown: shown.map(String::from) };
    assert_eq!(steps(PAGE), [step("one\ntwo\n", Some("of one … two\n")), step("three\n", None)]);
    assert_eq!(files(PAGE), [("values.yaml".to_string(), "# values.yaml\na: b\n".to_string())]);
}

#[test]
fn every_line_that_is_shown_must_be_said() {
    let said = "HTTP/1.1 403 Forbidden\r\nx-decided-by: opa\r\n\r\nnot for you\nauthorization (L4)  REFUSED  -  none matches\n";
    for shown in ["HTTP/1.1 403 Forbidden\n\nnot for you\n", "authorization (L4) … REFUSED … none matches", "…", ""]
    {
        assert_eq!(missing(shown, said), None, "{shown}");
    }
    for (shown, line) in [
        ("not for you\nx-decided-by: checks\n", "x-decided-by: checks"),
        ("REFUSED … authorization", "REFUSED … authorization"),
        ("HTTP/1.1 403 … not for you", "HTTP/1.1 403 … not for you"),
    ] {
        assert_eq!(missing(shown, said), Some(line));
    }
}

#[test]
fn the_pages_that_are_followed_show_what_their_commands_print() {
    for (name, page) in [
        ("breaker", include_str!("../../../docs/exercises/breaker.md")),
        ("canary", include_str!("../../../docs/exercises/canary.md")),
        ("client-addresses", include_str!("../../../docs/exercises/client-addresses.md")),
        ("datagrams", include_str!("../../../docs/exercises/datagrams.md")),
        ("egress", include_str!("../../../docs/exercises/egress.md")),
        ("external-authorization", include_str!("../../../docs/exercises/external-authorization.md")),
        ("faults", include_str!("../../../docs/exercises/faults.md")),
        ("ingress", include_str!("../../../docs/exercises/ingress.md")),
        ("live-traffic", include_str!("../../../docs/exercises/live-traffic.md")),
        ("mirror", include_str!("../../../docs/exercises/mirror.md")),
        ("past", include_str!("../../../docs/exercises/past.md")),
        ("rate-limits", include_str!("../../../docs/exercises/rate-limits.md")),
        ("releases", include_str!("../../../docs/exercises/releases.md")),
        ("shop", include_str!("../../../docs/exercises/shop.md")),
        ("signals", include_str!("../../../docs/exercises/signals.md")),
        ("timeouts", include_str!("../../../docs/exercises/timeouts.md")),
        ("tokens", include_str!("../../../docs/exercises/tokens.md")),
    ] {
        let shown = steps(page).iter().filter(|step| step.shown.is_some()).count();
        // No block of what is shown has lost its commands.
        assert_eq!(shown, page.matches("```text\n").count(), "{name}");
        assert!(shown > 0, "{name}");
    }
}
