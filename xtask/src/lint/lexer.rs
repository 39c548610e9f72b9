//! Words and signs of a Rust source, with their lines; no comments, texts or numbers: what a reader
//! of paths needs.

use anyhow::{Result, anyhow};
use proc_macro2::{Delimiter, LexError, Spacing, TokenStream, TokenTree};

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
///
/// # Errors
/// It is no Rust.
pub fn tokens(source: &str) -> Result<Vec<(Token, usize)>> {
    let stream: TokenStream = source.parse().map_err(|e: LexError| anyhow!("line {}: {e}", e.span().start().line))?;
    let mut out = Vec::new();
    flatten(stream, &mut out);
    Ok(out)
}

fn flatten(stream: TokenStream, out: &mut Vec<(Token, usize)>) {
    let mut all = stream.into_iter().peekable();
    while let Some(t) = all.next() {
        let line = t.span().start().line;
        let token = match t {
            TokenTree::Group(g) => {
                let signs = match g.delimiter() {
                    Delimiter::Parenthesis => Some(('(', ')')),
                    Delimiter::Brace => Some(('{', '}')),
                    Delimiter::Bracket => Some(('[', ']')),
                    Delimiter::None => None,
                };
                out.extend(signs.map(|(open, _)| (Token::Sign(open), line)));
                flatten(g.stream(), out);
                out.extend(signs.map(|(_, close)| (Token::Sign(close), g.span_close().start().line)));
                continue;
            }
            TokenTree::Ident(i) => Token::Word(i.to_string().trim_start_matches("r#").to_string()),
            TokenTree::Literal(_) => Token::Sign('0'),
            // A lifetime is a quote and its name.
            TokenTree::Punct(p) if p.as_char() == '\'' => {
                all.next();
                Token::Sign('0')
            }
            TokenTree::Punct(p) if p.as_char() == ':' && p.spacing() == Spacing::Joint => {
                match all.next_if(|next| matches!(next, TokenTree::Punct(p) if p.as_char() == ':')) {
                    Some(_) => Token::PathSep,
                    None => Token::Sign(':'),
                }
            }
            TokenTree::Punct(p) => Token::Sign(p.as_char()),
        };
        out.push((token, line));
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
            .unwrap()
            .into_iter()
            .filter_map(|(t, line)| if let Token::Word(w) = t { Some((w, line)) } else { None })
            .collect();
        let expected = [("a", 1), ("l", 1), ("type", 2), ("n", 2), ("o", 2)];
        assert_eq!(names, expected.map(|(n, l)| (n.to_owned(), l)));
    }
}
