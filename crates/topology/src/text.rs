//! Prometheus' text format, version 0.0.4: a strict reader in one pass, which borrows from the page.
//!
//! Read by hand: the crates for it are not kept (`prometheus-parse`: last release 2023). What a page may have is bounded; a line
//! that is not of the format fails the whole page, so that no half of one is counted.

use std::borrow::Cow;

/// Longest line, in bytes. Istio's series have about 1,000.
pub const MAX_LINE: usize = 16 << 10;
/// Most labels of one sample.
pub const MAX_LABELS: usize = 64;
/// Most samples of one page: 20,000 series of requests with three histograms are about a million.
pub const MAX_SAMPLES: usize = 2_000_000;

/// A page that is not of the format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of the metrics page: {what}")]
pub struct Error {
    /// From 1.
    pub line: usize,
    /// What is wrong with it.
    pub what: &'static str,
}

/// One line that is not a comment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample<'a> {
    /// Name and labels as they are written: what makes a series.
    pub series: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Its labels as they are written, without the braces.
    labels: &'a str,
    /// Its value.
    pub value: f64,
}

impl<'a> Sample<'a> {
    /// The labels, with their values unescaped. They were checked when the page was read.
    pub fn labels(&self) -> impl Iterator<Item = (&'a str, Cow<'a, str>)> + use<'a> {
        let mut rest = self.labels;
        std::iter::from_fn(move || {
            let (name, value, after) = label(rest).ok().flatten()?;
            rest = after;
            Some((name, unescaped(value)))
        })
    }
}

/// The samples of a page that `wanted` names, in their order; others are only checked for their name and value.
///
/// # Errors
/// If a line is not of the format, or the page has more than it may.
pub fn read<'a>(page: &'a str, wanted: impl Fn(&str) -> bool) -> Result<Vec<Sample<'a>>, Error> {
    let mut all = vec![];
    for (at, text) in page.lines().enumerate() {
        let failed = |what| Error { line: at + 1, what };
        if text.len() > MAX_LINE {
            return Err(failed("longer than 16 KiB"));
        }
        let text = text.trim();
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        let sample = line(text, &wanted).map_err(failed)?;
        if wanted(sample.name) {
            if all.len() >= MAX_SAMPLES {
                return Err(failed("more than 2,000,000 samples"));
            }
            all.push(sample);
        }
    }
    Ok(all)
}

fn line<'a>(text: &'a str, wanted: &impl Fn(&str) -> bool) -> Result<Sample<'a>, &'static str> {
    let end = text.find(|c: char| !is_name(c)).ok_or("a name without a value")?;
    let (name, rest) = text.split_at(end);
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
        return Err("no name of a metric");
    }
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(inner) => {
            let end = closing(inner).ok_or("no closing brace")?;
            let (labels, rest) = inner.split_at(end);
            (labels, rest.get(1..).unwrap_or_default())
        }
        None => ("", rest),
    };
    if wanted(name) {
        check(labels)?;
    }
    let series = text.get(..text.len() - rest.len()).unwrap_or_default().trim_end();
    let mut words = rest.split_ascii_whitespace();
    let value = words.next().and_then(number).ok_or("no number after the labels")?;
    let stamp = words.next().map(str::parse::<i64>);
    if stamp.is_some_and(|stamp| stamp.is_err()) || words.next().is_some() {
        return Err("something after the value that is no timestamp");
    }
    Ok(Sample { series, name, labels, value })
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == ':'
}

/// Prometheus' numbers are Go's: `+Inf`, `NaN`, hexadecimal ones are not written by anybody.
fn number(text: &str) -> Option<f64> {
    match text {
        "+Inf" | "Inf" => Some(f64::INFINITY),
        "-Inf" => Some(f64::NEG_INFINITY),
        "NaN" => Some(f64::NAN),
        _ if text.bytes().all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b)) => text.parse().ok(),
        _ => None,
    }
}

/// Where the labels end: at the first brace that is in no value.
fn closing(text: &str) -> Option<usize> {
    let (mut quoted, mut escaped) = (false, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'}' if !quoted => return Some(at),
            _ => {}
        }
    }
    None
}

fn check(mut labels: &str) -> Result<(), &'static str> {
    for _ in 0..=MAX_LABELS {
        match label(labels)? {
            None => return Ok(()),
            Some((.., rest)) => labels = rest,
        }
    }
    Err("more than 64 labels")
}

/// The first label, its value as it is written, and what follows. None: there is no more.
fn label(text: &str) -> Result<Option<(&str, &str, &str)>, &'static str> {
    let text = text.trim_start();
    if text.is_empty() {
        return Ok(None);
    }
    let (name, rest) = text.split_once('=').ok_or("a label without a value")?;
    let name = name.trim();
    if name.is_empty() || !name.chars().all(is_name) {
        return Err("no name of a label");
    }
    let rest = rest.trim_start().strip_prefix('"').ok_or("a label's value without quotes")?;
    let mut escaped = false;
    let end = rest.bytes().position(|byte| match byte {
        _ if escaped => {
            escaped = false;
            false
        }
        b'\\' => {
            escaped = true;
            false
        }
        byte => byte == b'"',
    });
    let end = end.ok_or("a label's value without an end")?;
    let (value, rest) = rest.split_at(end);
    let rest = rest.get(1..).unwrap_or_default().trim_start();
    match rest.strip_prefix(',') {
        Some(rest) => Ok(Some((name, value, rest))),
        None if rest.is_empty() => Ok(Some((name, value, rest))),
        None => Err("no comma between labels"),
    }
}

fn unescaped(value: &str) -> Cow<'_, str> {
    if !value.contains('\\') {
        return value.into();
    }
    let (mut out, mut chars) = (String::with_capacity(value.len()), value.chars());
    while let Some(c) = chars.next() {
        match (c, if c == '\\' { chars.next() } else { None }) {
            ('\\', Some('n')) => out.push('\n'),
            ('\\', Some(other)) => out.push(other),
            _ => out.push(c),
        }
    }
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Series, labels, value.
    type Line = (String, Vec<(String, String)>, f64);

    fn one(line: &str) -> Result<Line, &'static str> {
        let all = read(line, |_| true).map_err(|e| e.what)?;
        let labels = all[0].labels().map(|(name, value)| (name.to_owned(), value.into_owned())).collect();
        Ok((all[0].series.to_owned(), labels, all[0].value))
    }

    #[test]
    fn lines_are_read_as_prometheus_reads_them() {
        let label = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(one("up 1"), Ok(("up".into(), vec![], 1.0)));
        assert_eq!(one("up{} 1 1700000000000"), Ok(("up{}".into(), vec![], 1.0)));
        assert_eq!(one(r#"a{b="c",} 2.5"#), Ok((r#"a{b="c",}"#.into(), vec![label("b", "c")], 2.5)));
        let braces = one(r#"a{b="}\"\\n\n",c=""} +Inf"#).unwrap();
        assert_eq!(braces.1, [label("b", "}\"\\n\n"), label("c", "")]);
        assert!(braces.2.is_infinite());
    }

    #[test]
    fn what_is_not_of_the_format_fails_the_page_and_names_its_line() {
        let wrong = [
            ("up", "a name without a value"),
            ("up one", "no number after the labels"),
            ("up infinity", "no number after the labels"),
            ("up 1 soon", "something after the value that is no timestamp"),
            ("1up 1", "no name of a metric"),
            (r#"a{b="c" 1"#, "no closing brace"),
            ("a{b} 1", "a label without a value"),
            ("a{b=c} 1", "a label's value without quotes"),
            (r#"a{b="c"d="e"} 1"#, "no comma between labels"),
            (r#"a{-="c"} 1"#, "no name of a label"),
        ];
        for (line, what) in wrong {
            assert_eq!(one(line), Err(what), "{line}");
        }
        assert_eq!(read("# x\nup 1\nup", |_| true), Err(Error { line: 3, what: "a name without a value" }));
        let many = format!("a{{{}}} 1", r#"b="c","#.repeat(MAX_LABELS + 1));
        assert_eq!(one(&many), Err("more than 64 labels"));
        assert_eq!(one(&format!("a{{b=\"{}\"}} 1", "c".repeat(MAX_LINE))), Err("longer than 16 KiB"));
    }

    #[test]
    fn no_text_makes_it_panic() {
        use rand::{Rng, SeedableRng, rngs::StdRng};
        let mut random = StdRng::seed_from_u64(7);
        const PIECES: [&str; 14] = ["a", "{", "}", "\"", "\\", ",", "=", " ", "1", "\n", "#", "é", "le", "-"];
        for _ in 0..20_000 {
            let text: String = (0..random.random_range(0..24)).map(|_| PIECES[random.random_range(0..14)]).collect();
            for sample in read(&text, |_| true).into_iter().flatten() {
                assert!(text.contains(sample.series));
                sample.labels().for_each(drop);
            }
        }
    }
}
