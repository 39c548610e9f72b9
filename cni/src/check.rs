//! `karst-cni check`: what of Karst's needs this kernel has and lacks. Changes nothing on the node.

use crate::config::Config;
use karst_ebpf::check::{self, CgroupError, Found, Need, Row};

/// Prints a table. An error says what is lacking.
pub fn print(config: &Config) -> anyhow::Result<()> {
    let cgroup = config.cgroup_root();
    let rows = check::rows(&config.bpf_dir, cgroup.as_deref().map_err(|e| CgroupError::NoRoot(format!("{e:#}"))));
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let kernel = kernel.trim();
    print!("{}", table(&rows));
    let lacking: Vec<&str> = rows.iter().filter(|r| r.is_lacking()).map(|r| r.feature).collect();
    anyhow::ensure!(
        lacking.is_empty(),
        "this kernel ({kernel}) lacks features that Karst needs: {}",
        lacking.join(", ")
    );
    println!("this kernel ({kernel}) has everything that Karst needs");
    Ok(())
}

/// One line a row; columns are at least two spaces apart, so that a program can read them, too.
fn table(rows: &[Row]) -> String {
    let head = ["FEATURE", "NEEDED FOR", "SINCE", "HERE", ""].map(String::from);
    let lines: Vec<[String; 5]> = std::iter::once(head)
        .chain(rows.iter().map(|row| {
            let (here, why) = match &row.found {
                Found::Here => ("yes", ""),
                Found::Missing(why) => ("no", why.as_str()),
                Found::Unknown(why) => ("unknown", why.as_str()),
            };
            let note = match (&row.found, row.need) {
                (Found::Here, _) => String::new(),
                (_, Need::Required) => why.to_string(),
                (_, Need::Fallback(instead)) => format!("{why}; instead: {instead}"),
            };
            [row.feature.into(), row.purpose.into(), row.since.into(), here.into(), note]
        }))
        .collect();
    let width = |i: usize| lines.iter().filter_map(|l| l.get(i)).map(String::len).max().unwrap_or(0) + 2;
    let (a, b, c, d) = (width(0), width(1), width(2), width(3));
    lines.iter().map(|[f, p, s, h, n]| format!("{f:a$}{p:b$}{s:c$}{h:d$}{n}").trim_end().to_string() + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_says_what_is_done_instead() {
        let row = |need, found| Row { feature: "tcx", purpose: "place of the guard", since: "6.6", need, found };
        let text = table(&[
            row(Need::Fallback("a clsact filter"), Found::Missing("Invalid argument".into())),
            row(Need::Required, Found::Here),
        ]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "FEATURE  NEEDED FOR          SINCE  HERE",
                "tcx      place of the guard  6.6    no    Invalid argument; instead: a clsact filter",
                "tcx      place of the guard  6.6    yes",
            ]
        );
    }
}
