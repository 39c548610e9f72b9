//! A template's tree: actions, blocks and pipelines, in Go's grammar (text/template).

use super::{
    error::Fault,
    lex::{self, Kind, Piece, Token, Wrong, syntax},
};
use std::{collections::BTreeMap, rc::Rc};

/// How deep blocks and parentheses may be in each other.
const DEEPEST: usize = 60;

/// The nodes of a block.
pub(super) type Block = Rc<Vec<Node>>;

#[derive(Debug)]
pub(super) struct Node {
    pub line: usize,
    pub what: What,
}

#[derive(Debug)]
pub(super) enum What {
    Text(String),
    Print(Pipeline),
    If { condition: Pipeline, then: Block, otherwise: Block },
    With { value: Pipeline, then: Block, otherwise: Block },
    Range { over: Pipeline, body: Block, otherwise: Block },
    Template { name: String, value: Option<Pipeline> },
    Break,
    Continue,
}

#[derive(Debug)]
pub(super) struct Pipeline {
    /// `$a :=`, or `$a, $b :=` of a range.
    pub variables: Vec<String>,
    /// The variables are there already: `$a =`.
    pub assigns: bool,
    pub commands: Vec<Vec<Operand>>,
}

/// A value and the fields that are read of it.
#[derive(Debug)]
pub(super) struct Operand {
    pub base: Base,
    pub fields: Vec<String>,
}

#[derive(Debug)]
pub(super) enum Base {
    Dot,
    Variable(String),
    Function(String),
    Text(Rc<str>),
    Int(i64),
    Float(f64),
    Bool(bool),
    Nil,
    Pipeline(Box<Pipeline>),
}

/// A file's own block, and the templates that it defines.
#[derive(Debug)]
pub(super) struct Parsed {
    pub main: Block,
    pub defined: BTreeMap<String, Block>,
}

/// Parses a template.
pub(super) fn parse(source: &str) -> Result<Parsed, Wrong> {
    let pieces = lex::pieces(source)?;
    let mut parser = Parser { pieces: pieces.into_iter(), defined: BTreeMap::new(), line: 1 };
    let (main, end) = parser.block(0)?;
    match end {
        End::File => Ok(Parsed { main, defined: parser.defined }),
        End::Closed => Err((parser.line, syntax("end without if, with, range, define or block"))),
        End::Else(_) => Err((parser.line, syntax("else without if, with or range"))),
    }
}

struct Parser {
    pieces: std::vec::IntoIter<Piece>,
    defined: BTreeMap<String, Block>,
    line: usize,
}

enum End {
    File,
    Closed,
    /// What is after `else`: `if CONDITION`, or nothing.
    Else(Vec<Token>),
}

impl Parser {
    fn block(&mut self, depth: usize) -> Result<(Block, End), Wrong> {
        if depth > DEEPEST {
            return Err((self.line, Fault::TooMuch { what: "blocks in each other", limit: DEEPEST }));
        }
        let mut nodes = Vec::new();
        while let Some(piece) = self.pieces.next() {
            let (line, tokens) = match piece {
                Piece::Text(text) => {
                    nodes.push(Node { line: self.line, what: What::Text(text) });
                    continue;
                }
                Piece::Action { line, tokens } => (line, tokens),
            };
            self.line = line;
            let keyword = match tokens.first() {
                Some(Token { kind: Kind::Word(word), .. }) => word.as_str(),
                _ => "",
            };
            match keyword {
                "end" => return Ok((Rc::new(nodes), End::Closed)),
                "else" => return Ok((Rc::new(nodes), End::Else(tokens.into_iter().skip(1).collect()))),
                _ => nodes.extend(self.action(line, &tokens, depth)?.map(|what| Node { line, what })),
            }
        }
        Ok((Rc::new(nodes), End::File))
    }

    fn action(&mut self, line: usize, tokens: &[Token], depth: usize) -> Result<Option<What>, Wrong> {
        let keyword = match tokens.first() {
            Some(Token { kind: Kind::Word(word), .. }) => word.as_str(),
            _ => "",
        };
        let rest = tokens.get(1..).unwrap_or_default();
        let at = |fault| (line, fault);
        Ok(Some(match keyword {
            "if" | "with" | "range" => return self.branch(keyword, line, rest, depth).map(Some),
            "define" | "block" => {
                let (name, rest) = name(rest).map_err(at)?;
                let (body, end) = self.block(depth + 1)?;
                if !matches!(end, End::Closed) {
                    return Err((line, syntax(format!("{keyword} {name:?} is not closed: end is missing"))));
                }
                self.defined.insert(name.clone(), body);
                if keyword == "define" {
                    return Ok(None);
                }
                What::Template { name, value: Some(pipeline(rest).map_err(at)?) }
            }
            "template" => {
                let (name, rest) = name(rest).map_err(at)?;
                let value = if rest.is_empty() { None } else { Some(pipeline(rest).map_err(at)?) };
                What::Template { name, value }
            }
            "break" => What::Break,
            "continue" => What::Continue,
            _ => What::Print(pipeline(tokens).map_err(at)?),
        }))
    }

    fn branch(&mut self, keyword: &str, line: usize, rest: &[Token], depth: usize) -> Result<What, Wrong> {
        let value = pipeline(rest).map_err(|fault| (line, fault))?;
        let (then, end) = self.block(depth + 1)?;
        let otherwise = match end {
            End::Closed => Block::default(),
            End::File => return Err((line, syntax(format!("{keyword} is not closed: end is missing")))),
            End::Else(more) => self.otherwise(keyword, line, &more, depth)?,
        };
        Ok(match keyword {
            "if" => What::If { condition: value, then, otherwise },
            "with" => What::With { value, then, otherwise },
            _ => What::Range { over: value, body: then, otherwise },
        })
    }

    fn otherwise(&mut self, keyword: &str, line: usize, more: &[Token], depth: usize) -> Result<Block, Wrong> {
        match more.first().map(|token| &token.kind) {
            // `else if` has its end in common with the first if.
            Some(Kind::Word(word)) if word == keyword && keyword != "range" => {
                if depth >= DEEPEST {
                    return Err((line, Fault::TooMuch { what: "blocks in each other", limit: DEEPEST }));
                }
                let line = self.line;
                let what = self.branch(keyword, line, &more[1..], depth + 1)?;
                Ok(Rc::new(vec![Node { line, what }]))
            }
            Some(_) => Err((self.line, syntax(format!("after else there is nothing, or {keyword}")))),
            None => match self.block(depth + 1)? {
                (block, End::Closed) => Ok(block),
                _ => Err((line, syntax(format!("{keyword} with else is not closed: end is missing")))),
            },
        }
    }
}

fn name(tokens: &[Token]) -> Result<(String, &[Token]), Fault> {
    match tokens.split_first() {
        Some((Token { kind: Kind::Text(name), .. }, rest)) => Ok((name.clone(), rest)),
        _ => Err(syntax("a template's name is a string")),
    }
}

/// Parses a whole action as a pipeline.
fn pipeline(tokens: &[Token]) -> Result<Pipeline, Fault> {
    let mut reader = Reader { tokens, depth: 0 };
    let parsed = reader.pipeline()?;
    if reader.tokens.is_empty() { Ok(parsed) } else { Err(syntax("unexpected )")) }
}

struct Reader<'t> {
    tokens: &'t [Token],
    depth: usize,
}

impl Reader<'_> {
    fn peek(&self) -> Option<&Kind> {
        self.tokens.first().map(|token| &token.kind)
    }

    fn skip(&mut self, count: usize) {
        self.tokens = self.tokens.get(count..).unwrap_or_default();
    }

    fn pipeline(&mut self) -> Result<Pipeline, Fault> {
        let (variables, assigns) = self.variables();
        let mut commands = vec![self.command()?];
        while matches!(self.peek(), Some(Kind::Pipe)) {
            self.skip(1);
            commands.push(self.command()?);
        }
        Ok(Pipeline { variables, assigns, commands })
    }

    fn variables(&mut self) -> (Vec<String>, bool) {
        let kinds: Vec<&Kind> = self.tokens.iter().take(4).map(|token| &token.kind).collect();
        let (variables, used, assigns) = match kinds[..] {
            [Kind::Variable(one), Kind::Declare, ..] => (vec![one.clone()], 2, false),
            [Kind::Variable(one), Kind::Assign, ..] => (vec![one.clone()], 2, true),
            [Kind::Variable(one), Kind::Comma, Kind::Variable(two), Kind::Declare] => {
                (vec![one.clone(), two.clone()], 4, false)
            }
            [Kind::Variable(one), Kind::Comma, Kind::Variable(two), Kind::Assign] => {
                (vec![one.clone(), two.clone()], 4, true)
            }
            _ => (Vec::new(), 0, false),
        };
        self.skip(used);
        (variables, assigns)
    }

    fn command(&mut self) -> Result<Vec<Operand>, Fault> {
        let mut operands = Vec::new();
        while !matches!(self.peek(), None | Some(Kind::Pipe | Kind::Close)) {
            operands.push(self.operand()?);
        }
        if operands.is_empty() { Err(syntax("a value or a function is missing")) } else { Ok(operands) }
    }

    fn operand(&mut self) -> Result<Operand, Fault> {
        let Some(kind) = self.peek().cloned() else { return Err(syntax("a value is missing")) };
        self.skip(1);
        let mut fields = Vec::new();
        let base = match kind {
            Kind::Dot => Base::Dot,
            Kind::Field(first) => {
                fields.push(first);
                Base::Dot
            }
            Kind::Variable(name) => Base::Variable(name),
            Kind::Text(text) => Base::Text(text.into()),
            Kind::Int(number) => Base::Int(number),
            Kind::Float(number) => Base::Float(number),
            Kind::Word(word) => match word.as_str() {
                "true" => Base::Bool(true),
                "false" => Base::Bool(false),
                "nil" => Base::Nil,
                _ => Base::Function(word),
            },
            Kind::Open => self.parenthesis()?,
            Kind::Comma | Kind::Declare | Kind::Assign | Kind::Pipe | Kind::Close => {
                return Err(syntax("unexpected sign in an action"));
            }
        };
        while let Some(Token { kind: Kind::Field(field), spaced: false }) = self.tokens.first() {
            fields.push(field.clone());
            self.skip(1);
        }
        Ok(Operand { base, fields })
    }

    fn parenthesis(&mut self) -> Result<Base, Fault> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err(Fault::TooMuch { what: "parentheses in each other", limit: DEEPEST });
        }
        let inner = self.pipeline()?;
        self.depth -= 1;
        match self.peek() {
            Some(Kind::Close) => self.skip(1),
            _ => return Err(syntax("a parenthesis is not closed: ) is missing")),
        }
        Ok(Base::Pipeline(Box::new(inner)))
    }
}
