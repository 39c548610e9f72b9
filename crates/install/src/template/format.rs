//! How Go prints values: `{{ . }}`, `printf`, and numbers.

use super::{error::Fault, limits::Limits, value::Value};

/// What a missing key prints as; Helm removes it from what is rendered.
pub(super) const NO_VALUE: &str = "<no value>";

/// `{{ value }}`.
pub(super) fn display(value: &Value) -> String {
    match value {
        Value::Nil => NO_VALUE.into(),
        other => plain(other),
    }
}

/// Go's `%v`, which sprig's functions of strings use, too.
pub(super) fn plain(value: &Value) -> String {
    match value {
        Value::Nil => "<nil>".into(),
        Value::Bool(value) => value.to_string(),
        Value::Int(number) => number.to_string(),
        Value::Float(number) => float(*number),
        Value::Str(text) => text.to_string(),
        // JSON bounds its depth.
        Value::List(_) | Value::Map(_) | Value::Files(_) => of_json(&value.to_json()),
    }
}

fn of_json(json: &serde_json::Value) -> String {
    match json {
        serde_json::Value::Null => "<nil>".into(),
        serde_json::Value::String(text) => text.clone(),
        serde_json::Value::Array(items) => format!("[{}]", items.iter().map(of_json).collect::<Vec<_>>().join(" ")),
        serde_json::Value::Object(entries) => {
            let pairs: Vec<String> = entries.iter().map(|(key, value)| format!("{key}:{}", of_json(value))).collect();
            format!("map[{}]", pairs.join(" "))
        }
        serde_json::Value::Number(number) if number.is_f64() => float(number.as_f64().unwrap_or_default()),
        serde_json::Value::Bool(_) | serde_json::Value::Number(_) => json.to_string(),
    }
}

/// Go's `%v` of a float: as short as can be, with an exponent from 1e+06 on and below 1e-04.
fn float(number: f64) -> String {
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if number == 0.0 || (-4..6).contains(&exponent) {
        return number.to_string();
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

/// Go's `printf` for the verbs v, s, d, q, t, f, with width, precision and the flags 0, - and +.
pub(super) fn printf(template: &str, arguments: &[Value]) -> Result<String, Fault> {
    let mut output = String::new();
    let mut arguments = arguments.iter();
    let mut rest = template.chars().peekable();
    while let Some(c) = rest.next() {
        if c != '%' {
            output.push(c);
            continue;
        }
        let mut spec = Spec::default();
        while let Some(flag) = rest.next_if(|c| matches!(c, '0' | '-' | '+' | '#' | ' ')) {
            spec.zero |= flag == '0';
            spec.left |= flag == '-';
            spec.sign |= flag == '+';
        }
        spec.width = digits(&mut rest).unwrap_or_default();
        if rest.next_if_eq(&'.').is_some() {
            spec.precision = Some(digits(&mut rest).unwrap_or_default());
        }
        match rest.next() {
            Some('%') => output.push('%'),
            Some(verb) => match arguments.next() {
                Some(argument) => output.push_str(&spec.pad(&one(verb, argument, &spec))),
                None => output.push_str(&format!("%!{verb}(MISSING)")),
            },
            None => output.push_str("%!(NOVERB)"),
        }
        if output.len() > Limits::OUTPUT {
            return Err(Fault::TooMuch { what: "bytes of output", limit: Limits::OUTPUT });
        }
    }
    Ok(output)
}

#[derive(Default)]
struct Spec {
    zero: bool,
    left: bool,
    sign: bool,
    width: usize,
    precision: Option<usize>,
}

impl Spec {
    fn pad(&self, text: &str) -> String {
        let missing = self.width.saturating_sub(text.chars().count());
        if self.left {
            format!("{text}{}", " ".repeat(missing))
        } else if self.zero {
            let (sign, number) = text.split_at(usize::from(text.starts_with(['-', '+'])));
            format!("{sign}{}{number}", "0".repeat(missing))
        } else {
            format!("{}{text}", " ".repeat(missing))
        }
    }
}

/// At most 999: more is nobody's wish.
fn digits(rest: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<usize> {
    let mut number = None;
    while let Some(digit) = rest.peek().and_then(|c| c.to_digit(10)) {
        rest.next();
        number = Some((number.unwrap_or(0) * 10 + digit as usize).min(999));
    }
    number
}

fn one(verb: char, argument: &Value, spec: &Spec) -> String {
    let signed = |text: String, negative: bool| if spec.sign && !negative { format!("+{text}") } else { text };
    match (verb, argument) {
        ('v', value) => plain(value),
        ('s', Value::Nil) => "%!s(<nil>)".into(),
        ('s', Value::Int(number)) => format!("%!s(int64={number})"),
        ('s', Value::Float(number)) => format!("%!s(float64={})", float(*number)),
        ('s', Value::Bool(value)) => format!("%!s(bool={value})"),
        ('s', value) => {
            let text = plain(value);
            match spec.precision {
                Some(count) => text.chars().take(count).collect(),
                None => text,
            }
        }
        ('q', Value::Str(text)) => quote(text),
        ('d', Value::Int(number)) => signed(number.to_string(), *number < 0),
        ('f', Value::Float(number)) => signed(format!("{number:.*}", spec.precision.unwrap_or(6)), *number < 0.0),
        ('t', Value::Bool(value)) => value.to_string(),
        ('d' | 'f' | 't' | 'q', value) => format!("%!{verb}({}={})", value.kind(), plain(value)),
        (other, value) => format!("%!{other}({}={})", value.kind(), plain(value)),
    }
}

/// Go's `%q`, which sprig's `quote` is.
pub(super) fn quote(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            '\r' => quoted.push_str("\\r"),
            c if c.is_ascii_control() => quoted.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}
