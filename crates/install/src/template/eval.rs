//! Executes a template's tree.

use super::{
    error::{Fault, TemplateError},
    format,
    functions::{self, Engine},
    limits::Limits,
    parse::{self, Base, Block, Node, Operand, Pipeline, What},
    set::{Defined, Templates},
    value::Value,
};
use std::collections::BTreeMap;

impl Templates {
    /// Renders a file with `value` as its dot.
    ///
    /// # Errors
    /// What went wrong, with file and line.
    pub fn render(&self, file: &str, value: Value) -> Result<String, TemplateError> {
        let mut run = Run { templates: self, own: Vec::new(), depth: 0, steps: 0, made: 0 };
        run.template(file, value).map_err(|fault| match fault {
            Fault::Inside(inner) => *inner,
            fault => TemplateError { name: file.into(), line: 1, fault },
        })
    }
}

/// One execution.
pub(super) struct Run<'t> {
    templates: &'t Templates,
    /// What texts given to `tpl` define, innermost last.
    own: Vec<BTreeMap<String, Defined>>,
    depth: usize,
    steps: usize,
    /// Bytes that functions have made in all.
    made: usize,
}

/// Variables and the dot of a block. Go's `$` is the first variable.
struct Scope {
    variables: Vec<(String, Value)>,
    dot: Value,
}

enum Flow {
    On,
    Break,
    Continue,
}

impl Engine for Run<'_> {
    /// Executes a template by name: `include`, `template`, and the file itself.
    fn template(&mut self, name: &str, value: Value) -> Result<String, Fault> {
        let own = self.own.iter().rev().find_map(|defined| defined.get(name));
        let Some(defined) = own.or_else(|| self.templates.named.get(name)).cloned() else {
            return Err(Fault::UnknownTemplate(name.into()));
        };
        let mut scope = Scope { variables: vec![("$".into(), value.clone())], dot: value };
        let mut output = String::new();
        self.block(&defined.block, &defined.file, &mut scope, &mut output)?;
        // A key that is missing prints as nothing.
        Ok(output.replace(format::NO_VALUE, ""))
    }

    /// `tpl`: a text as a template of its own.
    fn text(&mut self, source: &str, value: Value) -> Result<String, Fault> {
        const NAME: &str = "tpl";
        let parsed = parse::parse(source).map_err(|(line, fault)| inside(NAME, line, fault))?;
        let define = |block| Defined { block, file: NAME.into() };
        let mut defined: BTreeMap<String, Defined> =
            parsed.defined.into_iter().map(|(name, block)| (name, define(block))).collect();
        defined.insert(NAME.into(), define(parsed.main));
        self.own.push(defined);
        let result = self.template(NAME, value);
        self.own.pop();
        result
    }

    /// Counts what functions and templates write.
    fn makes(&mut self, bytes: usize) -> Result<(), Fault> {
        self.made = self.made.saturating_add(bytes);
        if self.made > 8 * Limits::OUTPUT {
            return Err(Fault::TooMuch { what: "bytes of text", limit: 8 * Limits::OUTPUT });
        }
        Ok(())
    }
}

impl Run<'_> {
    fn block(&mut self, block: &Block, file: &str, scope: &mut Scope, output: &mut String) -> Result<Flow, Fault> {
        self.deeper(1)?;
        let outer = scope.variables.len();
        let mut flow = Flow::On;
        for node in block.iter() {
            flow = self.node(node, file, scope, output).map_err(|fault| inside(file, node.line, fault))?;
            if !matches!(flow, Flow::On) {
                break;
            }
        }
        scope.variables.truncate(outer);
        self.depth -= 1;
        Ok(flow)
    }

    fn deeper(&mut self, levels: usize) -> Result<(), Fault> {
        self.depth += levels;
        if self.depth > Limits::DEPTH {
            return Err(Fault::TooMuch { what: "levels of blocks and templates", limit: Limits::DEPTH });
        }
        Ok(())
    }

    fn node(&mut self, node: &Node, file: &str, scope: &mut Scope, output: &mut String) -> Result<Flow, Fault> {
        self.steps += 1;
        if self.steps > Limits::STEPS {
            return Err(Fault::TooMuch { what: "steps", limit: Limits::STEPS });
        }
        match &node.what {
            What::Text(text) => write(output, text)?,
            What::Print(pipeline) => {
                let value = self.pipeline(pipeline, scope)?;
                if pipeline.variables.is_empty() {
                    write(output, &format::display(&value))?;
                }
            }
            What::If { condition, then, otherwise } => {
                let outer = scope.variables.len();
                let holds = self.pipeline(condition, scope)?.is_true();
                let flow = self.block(if holds { then } else { otherwise }, file, scope, output);
                scope.variables.truncate(outer);
                return flow;
            }
            What::With { value, then, otherwise } => {
                let outer = scope.variables.len();
                let value = self.pipeline(value, scope)?;
                let flow = if value.is_true() {
                    let dot = std::mem::replace(&mut scope.dot, value);
                    let flow = self.block(then, file, scope, output);
                    scope.dot = dot;
                    flow
                } else {
                    self.block(otherwise, file, scope, output)
                };
                scope.variables.truncate(outer);
                return flow;
            }
            What::Range { over, body, otherwise } => return self.range(over, body, otherwise, file, scope, output),
            What::Template { name, value } => {
                let value = match value {
                    Some(pipeline) => self.pipeline(pipeline, scope)?,
                    None => Value::Nil,
                };
                write(output, &self.template(name, value)?)?;
            }
            What::Break => return Ok(Flow::Break),
            What::Continue => return Ok(Flow::Continue),
        }
        Ok(Flow::On)
    }

    fn range(
        &mut self,
        over: &Pipeline,
        body: &Block,
        otherwise: &Block,
        file: &str,
        scope: &mut Scope,
        output: &mut String,
    ) -> Result<Flow, Fault> {
        let outer = scope.variables.len();
        let commands = Commands { variables: &[], assigns: false, commands: &over.commands };
        let items = items(&self.commands(&commands, scope)?)?;
        if items.is_empty() {
            return self.block(otherwise, file, scope, output);
        }
        let before = scope.dot.clone();
        for (key, item) in items {
            match &over.variables[..] {
                [] => {}
                [value] => self.set(value, item.clone(), over.assigns, scope)?,
                [key_name, value, ..] => {
                    self.set(key_name, key, over.assigns, scope)?;
                    self.set(value, item.clone(), over.assigns, scope)?;
                }
            }
            scope.dot = item;
            let flow = self.block(body, file, scope, output)?;
            scope.variables.truncate(outer);
            if matches!(flow, Flow::Break) {
                break;
            }
        }
        scope.dot = before;
        Ok(Flow::On)
    }

    fn set(&self, name: &str, value: Value, assigns: bool, scope: &mut Scope) -> Result<(), Fault> {
        if !assigns {
            scope.variables.push((name.into(), value));
            return Ok(());
        }
        match scope.variables.iter_mut().rev().find(|(known, _)| known == name) {
            Some((_, known)) => *known = value,
            None => return Err(Fault::UnknownVariable(name.into())),
        }
        Ok(())
    }

    fn pipeline(&mut self, pipeline: &Pipeline, scope: &mut Scope) -> Result<Value, Fault> {
        self.commands(
            &Commands { variables: &pipeline.variables, assigns: pipeline.assigns, commands: &pipeline.commands },
            scope,
        )
    }

    fn commands(&mut self, pipeline: &Commands<'_>, scope: &mut Scope) -> Result<Value, Fault> {
        self.deeper(1)?;
        let mut piped = None;
        for command in pipeline.commands {
            piped = Some(self.command(command, piped, scope)?);
        }
        self.depth -= 1;
        let value = piped.unwrap_or_default();
        if let [name, ..] = pipeline.variables {
            self.set(name, value.clone(), pipeline.assigns, scope)?;
        }
        Ok(value)
    }

    fn command(&mut self, operands: &[Operand], piped: Option<Value>, scope: &mut Scope) -> Result<Value, Fault> {
        let Some((first, rest)) = operands.split_first() else { return Ok(Value::Nil) };
        if let Base::Function(name) = &first.base {
            return match name.as_str() {
                "and" | "or" => self.logic(name == "and", rest, piped, scope),
                _ => {
                    let mut arguments = self.values(rest, scope)?;
                    arguments.extend(piped);
                    let result = functions::call(self, name, &arguments)?;
                    fields(result, &first.fields)
                }
            };
        }
        if rest.is_empty() && piped.is_none() {
            return self.operand(first, scope);
        }
        // A method: the last field is its name.
        let Some((method, path)) = first.fields.split_last() else {
            return Err(Fault::Syntax("a value that is no function has arguments".into()));
        };
        let receiver = fields(self.base(&first.base, scope)?, path)?;
        let mut arguments = self.values(rest, scope)?;
        arguments.extend(piped);
        functions::method(&receiver, method, &arguments)
    }

    fn values(&mut self, operands: &[Operand], scope: &mut Scope) -> Result<Vec<Value>, Fault> {
        operands.iter().map(|operand| self.operand(operand, scope)).collect()
    }

    /// `and`, `or`: the value that decided, and nothing after it is asked.
    fn logic(&mut self, and: bool, rest: &[Operand], piped: Option<Value>, scope: &mut Scope) -> Result<Value, Fault> {
        let mut last = None;
        for operand in rest {
            let value = self.operand(operand, scope)?;
            if value.is_true() != and {
                return Ok(value);
            }
            last = Some(value);
        }
        let function = if and { "and" } else { "or" };
        piped.or(last).ok_or(Fault::Arguments { function: function.into(), wanted: "at least 1", got: 0 })
    }

    fn operand(&mut self, operand: &Operand, scope: &mut Scope) -> Result<Value, Fault> {
        fields(self.base(&operand.base, scope)?, &operand.fields)
    }

    fn base(&mut self, base: &Base, scope: &mut Scope) -> Result<Value, Fault> {
        Ok(match base {
            Base::Dot => scope.dot.clone(),
            Base::Variable(name) => match scope.variables.iter().rev().find(|(known, _)| known == name) {
                Some((_, value)) => value.clone(),
                None => return Err(Fault::UnknownVariable(name.clone())),
            },
            Base::Function(name) => functions::call(self, name, &[])?,
            Base::Text(text) => Value::Str(text.clone()),
            Base::Int(number) => Value::Int(*number),
            Base::Float(number) => Value::Float(*number),
            Base::Bool(value) => Value::Bool(*value),
            Base::Nil => Value::Nil,
            Base::Pipeline(pipeline) => self.pipeline(pipeline, scope)?,
        })
    }
}

/// A pipeline without what a range does with its variables.
struct Commands<'p> {
    variables: &'p [String],
    assigns: bool,
    commands: &'p [Vec<Operand>],
}

fn inside(file: &str, line: usize, fault: Fault) -> Fault {
    match fault {
        Fault::Inside(inner) => Fault::Inside(inner),
        fault => Fault::Inside(Box::new(TemplateError { name: file.into(), line, fault })),
    }
}

fn write(output: &mut String, text: &str) -> Result<(), Fault> {
    if output.len() + text.len() > Limits::OUTPUT {
        return Err(Fault::TooMuch { what: "bytes of output", limit: Limits::OUTPUT });
    }
    output.push_str(text);
    Ok(())
}

fn fields(mut value: Value, path: &[String]) -> Result<Value, Fault> {
    for field in path {
        value = match &value {
            Value::Map(entries) => entries.borrow().get(field).cloned().unwrap_or_default(),
            Value::Nil => return Err(Fault::NoField { field: field.clone(), of: "a value that is not set" }),
            other => return Err(Fault::NoField { field: field.clone(), of: other.kind() }),
        };
    }
    Ok(value)
}

/// What a range visits, with keys: a list's indices, a map's keys in order, or the numbers below one.
fn items(value: &Value) -> Result<Vec<(Value, Value)>, Fault> {
    Ok(match value {
        Value::Nil => Vec::new(),
        Value::List(items) => {
            items.iter().enumerate().map(|(at, item)| (Value::Int(at as i64), item.clone())).collect()
        }
        Value::Map(entries) => {
            entries.borrow().iter().map(|(key, item)| (Value::text(key.as_str()), item.clone())).collect()
        }
        Value::Files(files) => {
            files.iter().map(|(path, text)| (Value::text(path.as_str()), Value::text(text.as_str()))).collect()
        }
        Value::Int(count) if usize::try_from(*count).is_ok_and(|count| count <= Limits::STEPS) => {
            (0..*count).map(|number| (Value::Int(number), Value::Int(number))).collect()
        }
        other => {
            return Err(Fault::Kind { function: "range".into(), wanted: "a list or a map", got: other.kind() });
        }
    })
}
