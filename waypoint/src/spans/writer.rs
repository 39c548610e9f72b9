//! Tags, and what else spans are made of, appended to a buffer in the forms that collectors take.

use karst_api::route::CollectorProtocol;
use karst_proxy::trace::digits;
use std::io::Write;

/// Longest varint of a length, in bytes.
pub const VARINT: usize = 5;
/// Fields of OpenTelemetry's messages as they begin (their number, and the kind of what follows): of a span its attributes,
const ATTRIBUTE: u8 = 9 << 3 | 2;
/// those of a record of the log,
const RECORD_ATTRIBUTE: u8 = 6 << 3 | 2;
/// of an attribute both parts,
const KEY: u8 = 1 << 3 | 2;
const VALUE: u8 = 2 << 3 | 2;
/// and of its value one of these.
const STRING: u8 = 1 << 3 | 2;
const INT: u8 = 3 << 3;

/// How tags are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Otlp,
    Zipkin,
}

impl From<CollectorProtocol> for Form {
    fn from(protocol: CollectorProtocol) -> Self {
        match protocol {
            CollectorProtocol::OtlpGrpc | CollectorProtocol::OtlpHttp => Form::Otlp,
            CollectorProtocol::Zipkin => Form::Zipkin,
        }
    }
}

/// Writes tags behind one another.
pub struct Tags<'a> {
    out: &'a mut Vec<u8>,
    form: Form,
    /// OpenTelemetry's field that one is.
    field: u8,
    /// Names that are left out: a user has given them values of their own.
    without: &'a [&'a str],
}

impl<'a> Tags<'a> {
    /// Appends those of a span to a buffer.
    pub fn new(out: &'a mut Vec<u8>, form: Form, without: &'a [&'a str]) -> Self {
        Self { out, form, field: ATTRIBUTE, without }
    }

    /// Appends those of a record of the log.
    pub fn of_record(out: &'a mut Vec<u8>) -> Self {
        Self { out, form: Form::Otlp, field: RECORD_ATTRIBUTE, without: &[] }
    }

    /// A text; what is empty is not there.
    pub fn text(&mut self, key: &'static str, value: &str) {
        self.texts(key, &[value]);
    }

    /// A text in several parts.
    pub fn texts(&mut self, key: &'static str, parts: &[&str]) {
        if parts.iter().any(|part| !part.is_empty()) && !self.is_without(key) {
            self.put(key, parts);
        }
    }

    /// A number that is told as text.
    pub fn decimal(&mut self, key: &'static str, number: u64) {
        self.text(key, Decimal::new(number).as_str());
    }

    /// A number.
    pub fn number(&mut self, key: &'static str, number: u64) {
        match self.form {
            Form::Otlp => {
                if !self.is_without(key) {
                    attribute(self.out, self.field, key, 1 + varint_length(number));
                    self.out.push(INT);
                    varint(self.out, number);
                }
            }
            Form::Zipkin => self.decimal(key, number),
        }
    }

    /// What a user has said, empty or not.
    pub fn custom(&mut self, name: &str, value: &str) {
        self.put(name, &[value]);
    }

    /// Tags that were written before, in the same form.
    pub fn written(&mut self, tags: &[u8]) {
        self.out.extend_from_slice(tags);
    }

    fn is_without(&self, key: &str) -> bool {
        self.without.contains(&key)
    }

    fn put(&mut self, key: &str, parts: &[&str]) {
        match self.form {
            Form::Otlp => {
                let length: usize = parts.iter().map(|part| part.len()).sum();
                attribute(self.out, self.field, key, 1 + varint_length(length as u64) + length);
                self.out.push(STRING);
                varint(self.out, length as u64);
                parts.iter().for_each(|part| self.out.extend_from_slice(part.as_bytes()));
            }
            Form::Zipkin => {
                self.out.push(b'"');
                escaped(self.out, key);
                self.out.extend_from_slice(b"\":\"");
                parts.iter().for_each(|part| escaped(self.out, part));
                self.out.extend_from_slice(b"\",");
            }
        }
    }
}

/// The beginning of an attribute (`KeyValue`), whose value (`AnyValue`) has this length.
fn attribute(out: &mut Vec<u8>, field: u8, key: &str, value: usize) {
    let length = 1 + varint_length(key.len() as u64) + key.len() + 1 + varint_length(value as u64) + value;
    out.reserve(length + 1 + VARINT);
    if length < 0x80 {
        // Mostly each length is one byte.
        out.extend_from_slice(&[field, length as u8, KEY, key.len() as u8]);
        out.extend_from_slice(key.as_bytes());
        out.extend_from_slice(&[VALUE, value as u8]);
        return;
    }
    out.push(field);
    varint(out, length as u64);
    delimited(out, KEY, key.as_bytes());
    out.push(VALUE);
    varint(out, value as u64);
}

/// A field that is a value (`AnyValue`), of a text.
pub fn text_value(out: &mut Vec<u8>, field: u8, text: &str) {
    out.push(field);
    varint(out, (1 + varint_length(text.len() as u64) + text.len()) as u64);
    delimited(out, STRING, text.as_bytes());
}

/// A number of any length in protobuf.
pub fn varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Its length in bytes.
pub fn varint_length(number: u64) -> usize {
    (64 - (number | 1).leading_zeros() as usize).div_ceil(7)
}

/// A field of bytes, after their length.
pub fn delimited(out: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    out.push(field);
    varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// The inside of a string of JSON.
pub fn escaped(out: &mut Vec<u8>, text: &str) {
    let mut rest = text.as_bytes();
    while let Some(at) = rest.iter().position(|b| matches!(b, b'"' | b'\\' | 0..0x20)) {
        let (clean, special) = rest.split_at(at);
        out.extend_from_slice(clean);
        match special[0] {
            plain @ (b'"' | b'\\') => out.extend_from_slice(&[b'\\', plain]),
            control => drop(write!(out, "\\u{control:04x}")),
        }
        rest = &special[1..];
    }
    out.extend_from_slice(rest);
}

/// Hexadecimal digits.
pub fn hexadecimal(out: &mut Vec<u8>, number: u128, length: usize) {
    let at = out.len();
    out.resize(at + length, b'0');
    digits(number, &mut out[at..]);
}

/// A number as text, without an allocation.
pub struct Decimal {
    digits: [u8; 20],
    from: usize,
}

impl Decimal {
    /// Its digits.
    pub fn new(mut number: u64) -> Self {
        let (mut digits, mut from) = ([b'0'; 20], 19);
        // The largest has 20 digits.
        loop {
            digits[from] = b'0' + (number % 10) as u8;
            number /= 10;
            if number == 0 {
                return Self { digits, from };
            }
            from -= 1;
        }
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        str::from_utf8(&self.digits[self.from..]).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use karst_api::otlp::{AnyValue, any_value};
    use prost::Message;

    #[test]
    fn numbers_in_both_forms() {
        for number in [0, 1, 9, 10, 127, 128, 16_383, 16_384, u64::from(u32::MAX), u64::MAX] {
            let mut out = vec![];
            varint(&mut out, number);
            assert_eq!((out.len(), &out), (varint_length(number), &wire(number)));
            assert_eq!(Decimal::new(number).as_str(), number.to_string());
        }
    }

    /// A number as prost writes it.
    fn wire(number: u64) -> Vec<u8> {
        let value = Some(any_value::Value::IntValue(number as i64));
        let bytes = AnyValue { value }.encode_to_vec();
        assert_eq!(bytes[0], INT);
        bytes[1..].to_vec()
    }
}
