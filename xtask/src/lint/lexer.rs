//! Words and signs of a Rust source, with their lines; no comments, texts or numbers: what a reader
//! of paths needs.

/// One of them.
#[derive(Clone, Debug, PartialEq)]
pub enum Token {
    /// A name or keyword (`r#type` is `type`).
    Word(String),
    /// `::`
    PathSep,
    /// Every other sign; a text or number is `0`.
    Sign(char),
}

/// The tokens of `source`, each with its line.
pub fn tokens(source: &str) -> Vec<(Token, usize)> {
    let c: Vec<char> = source.chars().collect();
    let at = |i: usize| c.get(i).copied().unwrap_or('\0');
    let (mut out, mut i, mut line) = (Vec::new(), 0, 1);
    while i < c.len() {
        let begin = i;
        let token = match at(i) {
            '/' if at(i + 1) == '/' => {
                i += c.iter().skip(i).take_while(|c| **c != '\n').count();
                None
            }
            '/' if at(i + 1) == '*' => {
                i = comment_end(&c, i);
                None
            }
            '"' => {
                i = text_end(&c, i + 1);
                Some(Token::Sign('0'))
            }
            'r' | 'b' | 'c' if raw_text(&c, i).is_some() => {
                i = raw_text(&c, i).unwrap_or(c.len());
                Some(Token::Sign('0'))
            }
            '\'' | 'b' if at(i) == '\'' || at(i + 1) == '\'' => {
                i = quote_end(&c, i + usize::from(at(i) == 'b'));
                Some(Token::Sign('0'))
            }
            s if s.is_ascii_digit() => {
                i += c.iter().skip(i).take_while(|c| is_word(**c)).count();
                Some(Token::Sign('0'))
            }
            s if is_word(s) => {
                if s == 'r' && at(i + 1) == '#' && is_word(at(i + 2)) {
                    i += 2;
                }
                let word: String = c.iter().skip(i).take_while(|c| is_word(**c)).collect();
                i += word.chars().count();
                Some(Token::Word(word))
            }
            ':' if at(i + 1) == ':' => {
                i += 2;
                Some(Token::PathSep)
            }
            s => {
                i += 1;
                (!s.is_whitespace()).then_some(Token::Sign(s))
            }
        };
        out.extend(token.map(|t| (t, line)));
        line += c.get(begin..i.min(c.len())).into_iter().flatten().filter(|c| **c == '\n').count();
    }
    out
}

fn is_word(c: char) -> bool {
    c == '_' || c.is_alphanumeric()
}

/// Behind a block comment; they nest.
fn comment_end(c: &[char], mut i: usize) -> usize {
    let mut depth = 0;
    while i < c.len() {
        match c.get(i..i + 2) {
            Some(['/', '*']) => (depth, i) = (depth + 1, i + 2),
            Some(['*', '/']) => (depth, i) = (depth - 1, i + 2),
            _ => i += 1,
        }
        if depth == 0 {
            return i;
        }
    }
    i
}

/// Behind the text whose first character is at `i`.
fn text_end(c: &[char], mut i: usize) -> usize {
    while let Some(s) = c.get(i) {
        match s {
            '\\' => i += 2,
            '"' => return i + 1,
            _ => i += 1,
        }
    }
    i
}

/// Behind `r"…"`, `br#"…"#` and their like, if one begins at `i`.
fn raw_text(c: &[char], i: usize) -> Option<usize> {
    let prefix: String = c.iter().skip(i).take_while(|c| c.is_ascii_alphabetic()).take(3).collect();
    let raw = matches!(prefix.as_str(), "r" | "br" | "cr");
    if !raw && !matches!(prefix.as_str(), "b" | "c") {
        return None;
    }
    let mut i = i + prefix.len();
    let hashes = c.iter().skip(i).take_while(|c| raw && **c == '#').count();
    i += hashes;
    if c.get(i) != Some(&'"') {
        return None;
    }
    if !raw {
        return Some(text_end(c, i + 1));
    }
    i += 1;
    while i < c.len() {
        i += 1;
        if c.get(i - 1) == Some(&'"') && c.iter().skip(i).take_while(|c| **c == '#').take(hashes).count() == hashes {
            return Some(i + hashes);
        }
    }
    Some(i)
}

/// Behind a character or a lifetime.
fn quote_end(c: &[char], i: usize) -> usize {
    match (c.get(i + 1), c.get(i + 2)) {
        (Some('\\'), _) => i + 3 + c.iter().skip(i + 3).take_while(|c| **c != '\'').count() + 1,
        (Some(_), Some('\'')) => i + 3,
        _ => i + 1 + c.iter().skip(i + 1).take_while(|c| is_word(**c)).count(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_texts_and_lifetimes_hold_no_names() {
        let source =
            "a /* b /* c */ d */ \"e \\\" f\" r#\"g \" h\"# b'i' '\\'' 'j' &'k l // m\nr#type::n 0x_f 1..o b\"p\"";
        let names: Vec<(String, usize)> = tokens(source)
            .into_iter()
            .filter_map(|(t, line)| if let Token::Word(w) = t { Some((w, line)) } else { None })
            .collect();
        let expected = [("a", 1), ("l", 1), ("type", 2), ("n", 2), ("o", 2)];
        assert_eq!(names, expected.map(|(n, l)| (n.to_owned(), l)));
    }
}
