//! Text and tokens of a template: `{{`, `}}`, their trimming of white space, comments, and what is between.

use super::error::Fault;

/// A piece of a template.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Piece {
    Text(String),
    Action { line: usize, tokens: Vec<Token> },
}

/// A token, and whether white space was before it: `.a .b` are two operands, `.a.b` is one.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Token {
    pub kind: Kind,
    pub spaced: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Kind {
    Word(String),
    Field(String),
    Variable(String),
    Text(String),
    Int(i64),
    Float(f64),
    Dot,
    Pipe,
    Open,
    Close,
    Comma,
    Declare,
    Assign,
}

/// A fault and its line.
pub(super) type Wrong = (usize, Fault);

/// Cuts a template into its pieces.
pub(super) fn pieces(source: &str) -> Result<Vec<Piece>, Wrong> {
    let mut pieces = Vec::new();
    let mut rest = source;
    let mut line = 1;
    let mut trim_next = false;
    while let Some(start) = rest.find("{{") {
        let (text, after) = (&rest[..start], &rest[start + 2..]);
        let trim_before = after.starts_with('-') && after[1..].starts_with(|c: char| c.is_ascii_whitespace());
        push_text(&mut pieces, text, trim_next, trim_before);
        line += lines(text);
        let body = if trim_before { &after[1..] } else { after };
        let begun = line;
        let (inside, trim_after, used) =
            action(body).ok_or_else(|| (begun, syntax("an action is not closed: }} is missing")))?;
        line += lines(&body[..used]);
        trim_next = trim_after;
        rest = &body[used..];
        if let Some(inside) = inside {
            pieces.push(Piece::Action { line: begun, tokens: tokens(inside).map_err(|fault| (begun, fault))? });
        }
    }
    push_text(&mut pieces, rest, trim_next, false);
    Ok(pieces)
}

pub(super) fn syntax(text: impl Into<String>) -> Fault {
    Fault::Syntax(text.into())
}

fn lines(text: &str) -> usize {
    text.bytes().filter(|byte| *byte == b'\n').count()
}

fn push_text(pieces: &mut Vec<Piece>, text: &str, trim_start: bool, trim_end: bool) {
    let white = [' ', '\t', '\r', '\n'];
    let text = if trim_start { text.trim_start_matches(white) } else { text };
    let text = if trim_end { text.trim_end_matches(white) } else { text };
    if !text.is_empty() {
        pieces.push(Piece::Text(text.into()));
    }
}

/// The inside of an action (none for a comment), whether it trims what follows, and how much of the text it is.
fn action(body: &str) -> Option<(Option<&str>, bool, usize)> {
    let begin = body.len() - body.trim_start().len();
    if body[begin..].starts_with("/*") {
        let end = begin + body[begin..].find("*/")? + 2;
        let closing = body[end..].trim_start();
        let close = body.len() - closing.len();
        return if closing.starts_with("-}}") {
            Some((None, true, close + 3))
        } else if closing.starts_with("}}") {
            Some((None, false, close + 2))
        } else {
            None
        };
    }
    let bytes = body.as_bytes();
    let mut quote = None;
    let mut at = 0;
    while at < bytes.len() {
        let byte = bytes[at];
        match quote {
            Some(b'"' | b'\'') if byte == b'\\' => at += 1,
            Some(open) if byte == open => quote = None,
            Some(_) => {}
            None if matches!(byte, b'"' | b'`' | b'\'') => quote = Some(byte),
            None if bytes[at..].starts_with(b"}}") => {
                let inside = &body[..at];
                let trimmed =
                    inside.strip_suffix('-').filter(|i| i.is_empty() || i.ends_with(|c: char| c.is_ascii_whitespace()));
                return Some((Some(trimmed.unwrap_or(inside)), trimmed.is_some(), at + 2));
            }
            None => {}
        }
        at += 1;
    }
    None
}

fn tokens(inside: &str) -> Result<Vec<Token>, Fault> {
    let mut found = Vec::new();
    let mut rest = inside;
    loop {
        let trimmed = rest.trim_start();
        let spaced = trimmed.len() != rest.len();
        let Some(first) = trimmed.chars().next() else { return Ok(found) };
        let (kind, used) = token(trimmed, first)?;
        found.push(Token { kind, spaced });
        rest = &trimmed[used..];
    }
}

fn token(text: &str, first: char) -> Result<(Kind, usize), Fault> {
    let single = |kind| Ok((kind, 1));
    match first {
        '|' => single(Kind::Pipe),
        '(' => single(Kind::Open),
        ')' => single(Kind::Close),
        ',' => single(Kind::Comma),
        '=' => single(Kind::Assign),
        ':' if text.starts_with(":=") => Ok((Kind::Declare, 2)),
        '"' => quoted(text),
        '`' => match text[1..].find('`') {
            Some(end) => Ok((Kind::Text(text[1..=end].into()), end + 2)),
            None => Err(syntax("a raw string is not closed: ` is missing")),
        },
        '\'' => character(text),
        '$' => {
            let name = word(&text[1..]);
            Ok((Kind::Variable(format!("${name}")), 1 + name.len()))
        }
        '.' => {
            let name = word(&text[1..]);
            Ok(if name.is_empty() { (Kind::Dot, 1) } else { (Kind::Field(name.into()), 1 + name.len()) })
        }
        '0'..='9' | '-' | '+' => number(text),
        _ if first.is_alphabetic() || first == '_' => {
            let name = word(text);
            Ok((Kind::Word(name.into()), name.len()))
        }
        _ => Err(syntax(format!("unexpected {first:?}"))),
    }
}

fn word(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    &text[..end]
}

fn quoted(text: &str) -> Result<(Kind, usize), Fault> {
    let mut value = String::new();
    let mut rest = text[1..].char_indices();
    while let Some((at, c)) = rest.next() {
        match c {
            '"' => return Ok((Kind::Text(value), at + 2)),
            '\\' => match rest.next() {
                Some((_, 'n')) => value.push('\n'),
                Some((_, 't')) => value.push('\t'),
                Some((_, 'r')) => value.push('\r'),
                Some((_, escaped @ ('"' | '\\'))) => value.push(escaped),
                _ => return Err(syntax("unknown escape in a string; \\n, \\t, \\r, \\\" and \\\\ are known")),
            },
            _ => value.push(c),
        }
    }
    Err(syntax("a string is not closed: \" is missing"))
}

fn character(text: &str) -> Result<(Kind, usize), Fault> {
    let mut rest = text[1..].chars();
    match (rest.next(), rest.next()) {
        (Some(c), Some('\'')) if c != '\\' => Ok((Kind::Int(i64::from(u32::from(c))), 2 + c.len_utf8())),
        _ => Err(syntax("a character is written as 'x'")),
    }
}

fn number(text: &str) -> Result<(Kind, usize), Fault> {
    let end = text
        .char_indices()
        .find(|(at, c)| {
            !(c.is_ascii_alphanumeric() || *c == '.' || *c == '_' || (*at == 0 && (*c == '-' || *c == '+')))
        })
        .map_or(text.len(), |(at, _)| at);
    let written = &text[..end];
    let hexadecimal = written.strip_prefix("0x").map(|digits| i64::from_str_radix(digits, 16));
    if let Some(Ok(number)) = hexadecimal.or_else(|| Some(written.parse::<i64>())) {
        return Ok((Kind::Int(number), end));
    }
    match written.parse::<f64>() {
        Ok(number) if number.is_finite() => Ok((Kind::Float(number), end)),
        _ => Err(syntax(format!("{written:?} is no number"))),
    }
}
